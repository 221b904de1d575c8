#!lua flags=allow-oom
-- Trims what every group is past and is older than `retain`. Without Herald's own group nothing is trimmed: until it is
-- made again nobody knows how far Herald is.
-- KEYS    1 stream  2 lease
-- ARGV    1 term  2 retain in ms  3 group  4… names of groups that do not count
-- Answer  {'TRIMMED', entries} | {'LOST'} | {'NOGROUP'}
-- Flags   allow-oom: it only frees.

-- Bounds how long one call holds Redis. Whole nodes go first; only when less than half of it was used are the
-- finished entries of the one node that is left (100 entries by default) taken one by one.
local MAX_TRIM = 10000

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, group = KEYS[1], ARGV[3]
local retain = require_count(ARGV[2], 0, 1e15)
require_types(stream, 'stream')
if call('EXISTS', stream) == 0 then
  return {'NOGROUP'}
end

local ignored = {}
for i = 4, #ARGV do
  ignored[ARGV[i]] = ARGV[i] ~= group
end
local passed, own
for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
  local found = by_name(flat)
  own = own or found.name == group
  if not ignored[found.name] then
    local lowest = call('XPENDING', stream, found.name)[2]
    local past = lowest and before(lowest) or found['last-delivered-id']
    if not passed or pad(past) < pad(passed) then
      passed = past
    end
  end
end
if not own then
  return {'NOGROUP'}
end

-- Everything below `least` goes.
local least = whole(math.max(0, now_ms() - retain)) .. '-0'
local next_id = after(passed)
if next_id and pad(next_id) < pad(least) then
  least = next_id
end
local count = call('XTRIM', stream, 'MINID', '~', least, 'LIMIT', MAX_TRIM)
if count < MAX_TRIM / 2 then
  count = count + call('XTRIM', stream, 'MINID', '=', least)
end
return {'TRIMMED', count}
