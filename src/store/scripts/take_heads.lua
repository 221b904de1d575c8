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

-- Every head but the claimed ones is wanted, so this ends after at most `max` and what is claimed, however many there are.
local ids, seen, cursor = {}, {}, '0'
repeat
  local page = call('HSCAN', heads, cursor, 'COUNT', 100)
  cursor = page[1]
  for i = 2, #page[2], 2 do
    local id = page[2][i] .. ':' .. endpoint
    if #ids < max and not seen[id] and not call('ZSCORE', KEYS[3], id) then
      seen[id] = true
      ids[#ids + 1] = id
    end
  end
until cursor == '0' or #ids >= max

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
