#!lua flags=allow-oom
-- Moves heads of an endpoint's chains, due or in its backlog, to claimed: for a job that ends them all.
-- KEYS    1 lease  2 due  3 claimed
-- ARGV    1 term  2 prefix of this partition's keys  3 endpoint  4 most to move
-- Answer  {'HEADS', now ms, id, record or false, id, …} | {'LOST'}
-- Flags   allow-oom: what is ended frees memory.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, endpoint, max = ARGV[2], ARGV[3], require_count(ARGV[4], 0, MAX_ITEMS)
local heads, backlog = prefix .. 'heads:' .. endpoint, prefix .. 'backlog:' .. endpoint
require_types(KEYS[2], 'zset', KEYS[3], 'zset', heads, 'hash', backlog, 'zset')

-- Every head that is not claimed yet is wanted.
local ids, seen = {}, {}
local function add(entry)
  local id = entry .. ':' .. endpoint
  if #ids < max and not seen[id] and not call('ZSCORE', KEYS[3], id) then
    seen[id] = true
    ids[#ids + 1] = id
  end
end
if max > 0 then
  for _, padded in ipairs(call('ZRANGE', backlog, 0, whole(max - 1))) do
    add(unpad(padded))
  end
end
-- A scan passes everything that was taken before, and would cost more with each call: it is for the last few.
if #ids < max then
  local some = call('HRANDFIELD', heads, whole(2 * max), 'WITHVALUES')
  for i = 2, #some, 2 do
    add(some[i])
  end
end
local cursor = '0'
while #ids < max do
  local page = call('HSCAN', heads, cursor, 'COUNT', 100)
  cursor = page[1]
  for i = 2, #page[2], 2 do
    add(page[2][i])
  end
  if cursor == '0' then
    break
  end
end

local now = now_ms()
local kept = with_records(prefix, ids)
if #kept > 0 then
  local taken, scored, padded = {}, {}, {}
  for i = 1, #kept, 2 do
    local id = kept[i]
    taken[#taken + 1] = id
    padded[#padded + 1] = pad(match(id, '^[^:]+'))
    scored[i], scored[i + 1] = whole(now), id
  end
  call('ZADD', KEYS[3], unpack(scored))
  call('ZREM', KEYS[2], unpack(taken))
  call('ZREM', backlog, unpack(padded))
end
return {'HEADS', now, unpack(kept)}
