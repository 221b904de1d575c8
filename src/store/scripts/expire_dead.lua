#!lua flags=allow-oom
-- Drops dead letters beyond a limit of retention, the oldest first. Those that an operation has under way are left until it has
-- seen what became of them.
-- KEYS    1 lease  2 dead  3 dead-facts  4 dead-kinds  5 dead-names
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
require_dead_types()
if max == 0 then
  return {'EXPIRED', 0}
end

local surplus = call('ZCARD', dead) - tonumber(ARGV[4])
local oldest = call('ZRANGE', dead, 0, whole(max - 1), 'WITHSCORES')
local ids, indexes, facts = {}, {}, {}
for i = 1, #oldest, 2 do
  if (i - 1) / 2 >= surplus and tonumber(oldest[i + 1]) >= limit then
    break
  end
  local id = oldest[i]
  local endpoint = match(id, ':(.*)$') or ''
  local index = prefix .. 'dead:' .. endpoint
  require_types(index, 'zset')
  if type(try('HGET', prefix .. 'operation-claims', id)) ~= 'string' then
    local known = dead_line_of(call('HGET', dead_facts, id), endpoint)
    ids[#ids + 1], indexes[#indexes + 1], facts[#facts + 1] = id, index, known or false
  end
end
for i, id in ipairs(ids) do
  call('DEL', prefix .. 'dead-letter:' .. id)
  if facts[i] then
    unindex_dead(prefix, id, facts[i])
  else
    call('HDEL', dead_facts, id)
  end
  call('ZREM', indexes[i], id)
  call('ZREM', dead, id)
end
return {'EXPIRED', #ids}
