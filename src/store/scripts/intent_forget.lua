#!lua flags=allow-oom
-- Removes an intent.
-- KEYS    1 record  2 deadlines  3 counts  4 index of its status  5 feed of its account
-- ARGV    1 intent  2 revision that it is expected to have; 0 if there should be none  3… numbers of its events
-- Answer  {'OK'}, also if there is none | {'STALE'}: it has another revision
-- Flags   allow-oom: it frees memory.

require_types(KEYS[1], 'string', KEYS[2], 'zset', KEYS[3], 'hash', KEYS[4], 'zset', KEYS[5], 'stream')
local expected = require_count(ARGV[2], 0, 9007199254740991)
local stored = call('GETRANGE', KEYS[1], 0, 20)
if stored ~= '' and tonumber(match(stored, '^(%d+) ')) ~= expected then
  return {'STALE'}
end
for i = 3, #ARGV do
  require_count(ARGV[i], 1, 9007199254740991)
end
for i = 3, #ARGV do
  call('XDEL', KEYS[5], ARGV[i] .. '-0')
end
call('DEL', KEYS[1])
call('ZREM', KEYS[2], ARGV[1])
call('ZREM', KEYS[4], ARGV[1])
try('HINCRBY', KEYS[3], 'forgotten', 1)
return {'OK'}
