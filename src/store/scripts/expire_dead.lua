#!lua flags=allow-oom
-- Drops dead letters beyond a limit of retention, the oldest first.
-- KEYS    1 lease  2 dead
-- ARGV    1 term  2 prefix of this partition's keys  3 greatest age in ms  4 greatest count  5 most to drop
-- Answer  {'EXPIRED', dropped} | {'LOST'}
-- Flags   allow-oom: it only frees.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, dead = ARGV[2], KEYS[2]
local limit = now_ms() - tonumber(ARGV[3])
local max = require_count(ARGV[5], 0, MAX_ITEMS)
require_types(dead, 'zset')
if max == 0 then
  return {'EXPIRED', 0}
end

local surplus = call('ZCARD', dead) - tonumber(ARGV[4])
local oldest = call('ZRANGE', dead, 0, whole(max - 1), 'WITHSCORES')
local ids, indexes = {}, {}
for i = 1, #oldest, 2 do
  if (i - 1) / 2 >= surplus and tonumber(oldest[i + 1]) >= limit then
    break
  end
  local id = oldest[i]
  local index = prefix .. 'dead:' .. (match(id, ':(.*)$') or '')
  require_types(index, 'zset')
  ids[#ids + 1], indexes[#indexes + 1] = id, index
end
for i, id in ipairs(ids) do
  call('DEL', prefix .. 'dead-letter:' .. id)
  call('ZREM', indexes[i], id)
  call('ZREM', dead, id)
end
return {'EXPIRED', #ids}
