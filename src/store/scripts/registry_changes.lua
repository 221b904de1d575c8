-- Looks at the registry and at what changed since a version. Writes nothing.
--
-- KEYS    1 endpoints (hash)   2 meta (hash)   3 change feed (stream)
-- ARGV    1 id that is known, or empty   2 version that is known   3 most changes to answer with
-- answer  {none}                                      there is no registry
--         {damaged, why}
--         {gap, id, version, pause}                   the feed does not reach back to what is known: load everything
--         {ok, id, version, pause, and of each change: after, kind, endpoint, JSON, version}
--                                                     the version is that of the last change answered; pause is the mark
--                                                     as JSON or empty; JSON is what the endpoint is now, or empty

for index, expected in ipairs({ 'hash', 'hash', 'stream' }) do
  local found = redis.call('TYPE', KEYS[index]).ok
  if found ~= 'none' and found ~= expected then
    return { 'damaged', KEYS[index] .. ' is a ' .. found .. ', not a ' .. expected }
  end
end
local id, version, count, pause = unpack(redis.call('HMGET', KEYS[2], 'id', 'version', 'count', 'pause'))
local endpoints = redis.call('HLEN', KEYS[1])
if not id then
  if endpoints == 0 then return { 'none' } end
  return { 'damaged', 'it has ' .. endpoints .. ' endpoints but no id' }
end
if not version or tonumber(count) ~= endpoints then
  return { 'damaged', 'it should have ' .. tostring(count) .. ' endpoints but has ' .. endpoints }
end

pause = pause or ''
if ARGV[1] ~= id then return { 'gap', id, version, pause } end
if ARGV[2] == version then return { 'ok', id, version, pause } end
local entries = redis.call('XRANGE', KEYS[3], ARGV[2] .. '-0', '+', 'COUNT', tonumber(ARGV[3]) + 1)
if #entries < 2 or entries[1][1] ~= ARGV[2] .. '-0' then return { 'gap', id, version, pause } end

local answer = { 'ok', id, string.match(entries[#entries][1], '^%d+'), pause }
for index = 2, #entries do
  local fields = {}
  for field = 1, #entries[index][2], 2 do
    fields[entries[index][2][field]] = entries[index][2][field + 1]
  end
  local kind, endpoint = fields.kind or '', fields.endpoint or ''
  answer[#answer + 1] = fields.after or ''
  answer[#answer + 1] = kind
  answer[#answer + 1] = endpoint
  answer[#answer + 1] = kind == 'put' and redis.call('HGET', KEYS[1], endpoint) or ''
  answer[#answer + 1] = string.match(entries[index][1], '^%d+')
end
return answer
