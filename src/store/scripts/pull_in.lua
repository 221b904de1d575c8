#!lua flags=allow-oom
-- Makes late due times earlier, from a given time on and in their order: after Redis' clock was set back, and for times
-- that no policy can have meant.
-- KEYS    1 lease  2 due  3 stats
-- ARGV    1 term  2 from this time on, in ms  3 earlier by so many ms  4 most to move  5 ms by which the clock has stepped,
--         to be remembered, or 0
-- Answer  {'PULLED', now ms, moved, time of the last of them before, ms by which the clock is behind the last such call,
--         next due ms or false} | {'LOST'}
-- Flags   allow-oom: retries must not stop because Redis is full.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local by, max, step = require_count(ARGV[3], 0, 1e15), require_count(ARGV[4], 0, MAX_ITEMS), ARGV[5]
require_count(ARGV[2], 0, 1e15)
require_types(KEYS[2], 'zset', KEYS[3], 'hash')
if not find(step, '^%-?%d+$') then
  error({err = 'ERR the step is not a number; nothing was changed'})
end

if step ~= '0' then
  call('HINCRBY', KEYS[3], 'clock-steps', 1)
  call('HSET', KEYS[3], 'clock-step-ms', step, 'clock-step-at', whole(now_ms()))
end
-- A new owner learns of a step only from this.
local now = now_ms()
local seen = tonumber(call('HGET', KEYS[3], 'clock-seen') or 0) or 0
call('HSET', KEYS[3], 'clock-seen', whole(now))

local late = max > 0 and call('ZRANGE', KEYS[2], ARGV[2], '+inf', 'BYSCORE', 'LIMIT', 0, whole(max), 'WITHSCORES') or {}
local last = 0
for i = 1, #late, 2 do
  last = tonumber(late[i + 1])
  call('ZADD', KEYS[2], whole(math.max(0, last - by)), late[i])
end
return {'PULLED', now, #late / 2, last, math.max(0, seen - now), next_due(KEYS[2])}
