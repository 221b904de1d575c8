#!lua flags=allow-oom
-- Trims what every group has passed and what was there `retain` ago. Without Herald's own group nothing is trimmed:
-- until it is made again, nobody knows how far Herald is.
-- KEYS    1 stream  2 lease  3 marks  4 places
-- ARGV    1 term  2 retain in ms  3 group  4 parts of `retain` by which an entry may stay longer
--         5 the entry up to which the history has read, which keeps the events' bytes; '' if nobody does
--         6… names of groups that do not count
-- Answer  {'TRIMMED', entries, now ms} | {'LOST'} | {'NOGROUP'}
-- Flags   allow-oom: it only frees.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, marks, places, group = KEYS[1], KEYS[3], KEYS[4], ARGV[3]
local retain, parts = require_count(ARGV[2], 0, 1e15), require_count(ARGV[4], 1, 1e6)
local up_to = ARGV[5] ~= '' and pad(ARGV[5])
require_types(stream, 'stream', marks, 'zset', places, 'zset')
if call('EXISTS', stream) == 0 then
  return {'NOGROUP'}
end

local ignored = {}
for i = 6, #ARGV do
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

local now = now_ms()

local old = pad(passed)
if retain > 0 then
  old = old_after(marks, now, retain, parts, old)
end
if not old then
  return {'TRIMMED', 0, now}
end
if up_to and up_to < old then
  old = up_to
end
-- Everything below `least` goes. Nothing comes after the last possible id, so that one entry stays.
local least = unpad(old)
return {'TRIMMED', trim_before(stream, places, after(least) or least), now}
