#!lua flags=allow-oom
-- Notes that these endpoints cannot be read now: what waits for them does not grow older.
-- KEYS    1 lease  2 unreadable
-- ARGV    1 term  2 ms after which a note is of no more use  3 … endpoints
-- Answer  {'NOTED', now ms} | {'LOST'}
-- Flags   allow-oom: what waits would be given up because Redis is full.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local holds = require_count(ARGV[2], 1, 1e15)
require_count(whole(#ARGV - 2), 0, MAX_ITEMS)
-- What a stranger left in its place ends nobody's term.
if misfit(KEYS[2], 'zset') then
  call('DEL', KEYS[2])
end
local now = now_ms()
local scored = {}
for i = 3, #ARGV do
  scored[#scored + 1], scored[#scored + 2] = whole(now), ARGV[i]
end
if #scored > 0 then
  call('ZADD', KEYS[2], unpack(scored))
end
call('ZREMRANGEBYSCORE', KEYS[2], '-inf', whole(math.max(0, now - holds)))
return {'NOTED', now}
