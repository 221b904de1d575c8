#!lua flags=allow-oom
-- Trims what every group has passed and what was there `retain` ago. Without Herald's own group nothing is trimmed:
-- until it is made again, nobody knows how far Herald is. An entry's id does not tell the time, because producers may
-- write what they like; so marks are kept of how far the groups were at which time of Redis' clock.
-- KEYS    1 stream  2 lease  3 marks  4 places
-- ARGV    1 term  2 retain in ms  3 group  4 parts of `retain` by which an entry may stay longer
--         5 the entry up to which the history has read, which keeps the events' bytes; '' if nobody does
--         6… names of groups that do not count
-- Answer  {'TRIMMED', entries, now ms} | {'LOST'} | {'NOGROUP'}
-- Flags   allow-oom: it only frees.

-- Bounds how long one call holds Redis. Whole nodes go first; only when less than half of it was used are the
-- finished entries of the one node that is left (100 entries by default) taken one by one.
local MAX_TRIM = 10000

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

-- Padded: the entry up to which everything was passed `retain` ago; nil while that is not known.
local function old_after(padded)
  -- Redis' clock went back: marks that are in the future now go.
  call('ZREMRANGEBYSCORE', marks, '(' .. whole(now), '+inf')
  local newest = call('ZRANGE', marks, -1, -1, 'WITHSCORES')
  if newest[1] and newest[1] > padded then
    -- Another stream, or a group that was set back.
    call('DEL', marks)
    newest = {}
  end
  if not newest[1] or (newest[1] ~= padded and (now - newest[2]) * parts >= retain) then
    call('ZADD', marks, whole(now), padded)
  end
  local limit = whole(now - retain)
  local old = call('ZRANGE', marks, limit, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')
  if old[1] then
    call('ZREMRANGEBYSCORE', marks, '-inf', '(' .. old[2])
  end
  return old[1]
end

local old = pad(passed)
if retain > 0 then
  old = old_after(old)
end
if not old then
  return {'TRIMMED', 0, now}
end
if up_to and up_to < old then
  old = up_to
end
-- Everything below `least` goes. Nothing comes after the last possible id, so that one entry stays.
local least = unpad(old)
least = after(least) or least
call('ZREMRANGEBYLEX', places, '-', '(' .. pad(least))
local count = call('XTRIM', stream, 'MINID', '~', least, 'LIMIT', MAX_TRIM)
if count < MAX_TRIM / 2 then
  count = count + call('XTRIM', stream, 'MINID', '=', least)
end
return {'TRIMMED', count, now}
