-- Removes one endpoint.
--
-- KEYS    as in registry_change.lua
-- ARGV    1 to 6 as there   7 endpoint's id   8 revision that the caller saw; empty removes whatever is there
-- answer  {ok, version} | {missing} | {stale, revision} | {unreadable} | {damaged, why}

local complaint = wrong_type()
if complaint then return complaint end
local endpoint, seen = ARGV[7], ARGV[8]
if not endpoint or endpoint == '' or not seen or (seen ~= '' and not tonumber(seen)) then
  return redis.error_reply('ERR a removal of an endpoint has bad arguments')
end
local damaged = damage()
if damaged then return { 'damaged', damaged } end

local stored = redis.call('HGET', KEYS[1], endpoint)
if not stored then return { 'missing' } end
if seen ~= '' then
  local readable, known = pcall(cjson.decode, stored)
  if not readable or type(known) ~= 'table' or type(known.revision) ~= 'number' then return { 'unreadable' } end
  if known.revision ~= tonumber(seen) then return { 'stale', string.format('%.0f', known.revision) } end
end

local version = announce('remove', endpoint)
redis.call('HDEL', KEYS[1], endpoint)
count()
return { 'ok', version }
