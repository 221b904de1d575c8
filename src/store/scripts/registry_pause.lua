-- Stops all sending, or lets it go on.
--
-- KEYS    as in registry_change.lua
-- ARGV    1 to 6 as there   7 the mark as JSON; empty lets it go on
-- answer  {ok, version} | {unchanged} | {damaged, why}
-- It works on a damaged registry if there is meta data: whoever stops everything must not be held up.

local complaint = wrong_type()
if complaint then return complaint end
local mark = ARGV[7]
if not mark then return redis.error_reply('ERR a pause has bad arguments') end
if redis.call('HEXISTS', KEYS[2], 'id') == 0 then
  local damaged = damage()
  if damaged then return { 'damaged', damaged } end
end
if mark == '' and redis.call('HEXISTS', KEYS[2], 'pause') == 0 then return { 'unchanged' } end

if mark == '' then
  local version = announce('resume', '')
  redis.call('HDEL', KEYS[2], 'pause')
  return { 'ok', version }
end
local version = announce('pause', '')
redis.call('HSET', KEYS[2], 'pause', mark)
return { 'ok', version }
