#!lua flags=allow-oom
-- Trims a routed stream: what all its parts have, as their replicas confirm, what every other group has passed, and what was so
-- `retain` ago. The last such entry stays: whoever asks for what is behind it sees that nothing is gone.
-- KEYS    1 stream  2 lease  3 marks  4 places  5 cursor
-- ARGV    1 term  2 the entry up to which all parts have everything  3 the entry up to which any has something  4 retain in ms
--         5 parts of `retain` by which an entry may stay longer  6… names of groups that do not count
-- Answer  {'TRIMMED', entries} | {'LOST'}
-- Flags   allow-oom: it only frees.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, marks, places, cursor = KEYS[1], KEYS[3], KEYS[4], KEYS[5]
local passed, highest, retain = ARGV[2], ARGV[3], require_count(ARGV[4], 0, 1e15)
local parts = require_count(ARGV[5], 1, 1e6)
require_types(stream, 'stream', marks, 'zset', places, 'zset', cursor, 'string')
local known = call('GET', cursor)
if not known or not is_entry(known) or pad(known) < pad(passed) then
  call('SET', cursor, passed)
end
if call('EXISTS', stream) == 0 then
  return {'TRIMMED', 0}
end
-- A failover has made it forget entries that parts have. An id that comes a second time would be taken for one of those.
if pad(by_name(call('XINFO', 'STREAM', stream))['last-generated-id']) < pad(highest) then
  call('XSETID', stream, highest)
end
local ignored = {}
for i = 6, #ARGV do
  ignored[ARGV[i]] = true
end
for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
  local found = by_name(flat)
  if not ignored[found.name] then
    local lowest = call('XPENDING', stream, found.name)[2]
    local past = lowest and before(lowest) or found['last-delivered-id']
    if pad(past) < pad(passed) then
      passed = past
    end
  end
end
local old = pad(passed)
if retain > 0 then
  old = old_after(marks, now_ms(), retain, parts, old)
end
if not old then
  return {'TRIMMED', 0}
end
return {'TRIMMED', trim_before(stream, places, unpad(old))}
