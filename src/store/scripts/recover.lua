#!lua flags=allow-oom
-- At the start of a term: what an earlier one had claimed is due now.
-- KEYS    1 lease  2 due  3 claimed
-- ARGV    1 term  2 most to move
-- Answer  {'RECOVERED', moved} | {'LOST'}
-- Flags   allow-oom: without it no term starts on a full Redis.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local max = require_count(ARGV[2], 0, MAX_ITEMS)
require_types(KEYS[2], 'zset', KEYS[3], 'zset')

local ids = call('ZRANGE', KEYS[3], 0, whole(max - 1))
if max == 0 or #ids == 0 then
  return {'RECOVERED', 0}
end
local now, scored = whole(now_ms()), {}
for i, id in ipairs(ids) do
  scored[2 * i - 1], scored[2 * i] = now, id
end
call('ZADD', KEYS[2], unpack(scored))
call('ZREM', KEYS[3], unpack(ids))
return {'RECOVERED', #ids}
