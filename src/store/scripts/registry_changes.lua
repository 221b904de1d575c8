-- Looks at the registry and at what changed since a version. Writes nothing.
--
-- KEYS    1 endpoints (hash)   2 meta (hash)   3 change feed (stream)
-- ARGV    1 id that is known, or empty   2 version that is known   3 its stamp   4 most changes to answer with
-- answer  {none}                                      there is no registry
--         {damaged, why}
--         {gap, id, version, stamp, pause, is_back}   the feed does not reach back to what is known: load everything; is_back
--                                                     is 1 where what is known has been taken back, else 0
--         {ok, id, version, stamp, pause, and of each change: after, kind, endpoint, JSON, version}
--                                                     version and stamp are those of the last change answered; pause is
--                                                     the mark as JSON or empty; JSON is what the endpoint is now, or empty

for index, expected in ipairs({ 'hash', 'hash', 'stream' }) do
  local found = redis.call('TYPE', KEYS[index]).ok
  if found ~= 'none' and found ~= expected then
    return { 'damaged', KEYS[index] .. ' is a ' .. found .. ', not a ' .. expected }
  end
end
local id, version, noted, count, pause =
  unpack(redis.call('HMGET', KEYS[2], 'id', 'version', 'stamp', 'count', 'pause'))
local endpoints = redis.call('HLEN', KEYS[1])
if not id then
  if endpoints == 0 then return { 'none' } end
  return { 'damaged', 'it has ' .. endpoints .. ' endpoints but no id' }
end
if not version or tonumber(count) ~= endpoints then
  return { 'damaged', 'it should have ' .. tostring(count) .. ' endpoints but has ' .. endpoints }
end

pause = pause or ''
local stamp = stamp_of(version, noted)
local function gap(is_back)
  return { 'gap', id, version, stamp, pause, is_back and '1' or '0' }
end

local function by_name(entry)
  local fields = {}
  for field = 1, #entry[2], 2 do
    fields[entry[2][field]] = entry[2][field + 1]
  end
  return fields
end

if ARGV[1] ~= id then return gap(false) end
if ARGV[2] == version then
  if ARGV[3] ~= stamp then return gap(true) end
  return { 'ok', id, version, stamp, pause }
end
local known = ARGV[2] .. '-0'
local entries = redis.call('XRANGE', KEYS[3], known, '+', 'COUNT', tonumber(ARGV[4]) + 1)
if #entries == 0 or entries[1][1] ~= known then
  -- Old entries leave the feed from its beginning on. One that is missing behind older ones has been taken back.
  local older = redis.call('XRANGE', KEYS[3], '-', known, 'COUNT', 1)
  return gap(#older > 0)
end
if (by_name(entries[1]).stamp or NO_STAMP) ~= ARGV[3] then return gap(true) end
if #entries < 2 then return gap(false) end

local last = entries[#entries]
local answer = { 'ok', id, string.match(last[1], '^%d+'), by_name(last).stamp or NO_STAMP, pause }
for index = 2, #entries do
  local fields = by_name(entries[index])
  local kind, endpoint = fields.kind or '', fields.endpoint or ''
  answer[#answer + 1] = fields.after or ''
  answer[#answer + 1] = kind
  answer[#answer + 1] = endpoint
  answer[#answer + 1] = kind == 'put' and redis.call('HGET', KEYS[1], endpoint) or ''
  answer[#answer + 1] = string.match(entries[index][1], '^%d+')
end
return answer
