#!lua flags=allow-oom
-- Moves due deliveries to claimed, the most overdue first.
-- KEYS    1 lease  2 due  3 claimed
-- ARGV    1 term  2 prefix of this partition's keys  3 most to move
-- Answer  {'CLAIMED', now ms, next due ms or false, id, record or false, id, …} | {'LOST'}
-- Flags   allow-oom: what is delivered frees memory.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local max = require_count(ARGV[3], 0, MAX_ITEMS)
require_types(KEYS[2], 'zset', KEYS[3], 'zset')

local now = now_ms()
local now_text, kept = whole(now), {}
if max > 0 then
  kept = with_records(ARGV[2], call('ZRANGE', KEYS[2], '-inf', now_text, 'BYSCORE', 'LIMIT', 0, whole(max)))
end
if #kept > 0 then
  local scored = {}
  for i = 1, #kept, 2 do
    scored[i], scored[i + 1] = now_text, kept[i]
  end
  call('ZADD', KEYS[3], unpack(scored))
  -- They are the first ones: where millions are due, finding each would cost more than all the rest.
  call('ZREMRANGEBYRANK', KEYS[2], 0, whole(#kept / 2 - 1))
end
return {'CLAIMED', now, next_due(KEYS[2]), unpack(kept)}
