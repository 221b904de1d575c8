-- Writes some endpoints in another form that says the same: sealed with another key, or not sealed. Their revisions stay.
-- Each is compared as a whole with what was read, since an id may have been given to another endpoint meanwhile.
--
-- KEYS    as in registry_change.lua
-- ARGV    1 to 6 as there   7… endpoint's id, its JSON as it was read, its JSON from now on, and so on, at most 500 triples
-- answer  {ok, number written} | {damaged, why}

local complaint = wrong_type()
if complaint then return complaint end
if #ARGV < 9 or #ARGV > 1506 or (#ARGV - 6) % 3 ~= 0 then
  return redis.error_reply('ERR a change of the seal has bad arguments')
end
local damaged = damage()
if damaged then return { 'damaged', damaged } end

local written = 0
for index = 7, #ARGV, 3 do
  local endpoint, seen, json = ARGV[index], ARGV[index + 1], ARGV[index + 2]
  if redis.call('HGET', KEYS[1], endpoint) == seen then
    announce('put', endpoint)
    redis.call('HSET', KEYS[1], endpoint, json)
    written = written + 1
  end
end
return { 'ok', tostring(written) }
