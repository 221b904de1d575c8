#!lua flags=allow-oom
-- Takes out of the indexes what is no letter any more, because an older Herald removed it: a page of all lines.
-- KEYS    1 lease  2 dead  3 dead-facts  4 dead-kinds  5 dead-names
-- ARGV    1 term  2 prefix of this partition's keys  3 cursor
-- Answer  {'SWEPT', next cursor or '0', taken out} | {'LOST'}
-- Flags   allow-oom: it only frees.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, dead = ARGV[2], KEYS[2]
require_types(dead, 'zset')
require_dead_types()
local page = call('HSCAN', dead_facts, ARGV[3], 'COUNT', 100)
local gone = {}
for i = 1, #page[2], 2 do
  local id = page[2][i]
  if not call('ZSCORE', dead, id) then
    local known = dead_line_of(page[2][i + 1], match(id, ':(.*)$') or '')
    gone[#gone + 1], gone[#gone + 2] = id, known or false
  end
end
for i = 1, #gone, 2 do
  if gone[i + 1] then
    unindex_dead(prefix, gone[i], gone[i + 1])
  else
    call('HDEL', dead_facts, gone[i])
  end
end
return {'SWEPT', page[1], #gone / 2}
