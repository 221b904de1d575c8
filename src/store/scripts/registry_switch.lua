-- Makes a staged import the registry, in one step. It also mends a damaged registry.
--
-- KEYS    1 to 3 as in registry_change.lua   4 staging (hash)
-- ARGV    1 to 6 as there   7 number of endpoints staged   8 last change that the import saw
-- answer  {ok, version, id} | {changed} | {unstaged, number found}

local complaint = wrong_type()
if complaint then return complaint end
local expected, seen = tonumber(ARGV[7]), ARGV[8]
if not KEYS[4] or not expected or expected < 1 or not seen then
  return redis.error_reply('ERR an import has bad arguments')
end
local staged = redis.call('HLEN', KEYS[4])
if staged ~= expected then return { 'unstaged', tostring(staged) } end
if last_change() ~= seen then return { 'changed' } end

local version = announce('reset', '')
redis.call('PERSIST', KEYS[4])
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[4], KEYS[1])
count()
return { 'ok', version, redis.call('HGET', KEYS[2], 'id') }
