-- Creates or updates one endpoint.
--
-- KEYS    as in registry_change.lua
-- ARGV    1 to 6 as there   7 `create` or `update`   8 endpoint's id   9 its JSON   10 revision that the update saw
--         11 schema of the JSON   12 last change of the registry that the caller saw; empty takes any
-- answer  {ok, version} | {moved} | {exists} | {missing} | {stale, revision} | {newer, schema} | {unreadable} | {damaged, why}

local complaint = wrong_type()
if complaint then return complaint end
local mode, endpoint, json, seen, schema = ARGV[7], ARGV[8], ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])
if (mode ~= 'create' and mode ~= 'update') or endpoint == '' or json == '' or not seen or not schema then
  return redis.error_reply('ERR a change of an endpoint has bad arguments')
end
local damaged = damage()
if damaged then return { 'damaged', damaged } end

if ARGV[12] ~= '' and last_change() ~= ARGV[12] then return { 'moved' } end
local stored = redis.call('HGET', KEYS[1], endpoint)
if mode == 'create' then
  if stored then return { 'exists' } end
else
  if not stored then return { 'missing' } end
  local readable, known = pcall(cjson.decode, stored)
  if not readable or type(known) ~= 'table' or type(known.revision) ~= 'number' or type(known.schema) ~= 'number' then
    return { 'unreadable' }
  end
  if known.schema > schema then return { 'newer', string.format('%.0f', known.schema) } end
  if known.revision ~= seen then return { 'stale', string.format('%.0f', known.revision) } end
end

local version = announce('put', endpoint)
redis.call('HSET', KEYS[1], endpoint, json)
count()
return { 'ok', version }
