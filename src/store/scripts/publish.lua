#!lua
-- Adds events to the stream in their order, each once within a while: one whose id was published in that time is not added
-- again, and its entry is told instead, or that its bytes were others.
-- KEYS    1 the stream
-- ARGV    1 the prefix of its companions   2 the while, in ms   then of each event: id, digest, bytes, traceparent or ''
-- Answer  for each event two texts: added, known or differs; and its entry
-- A full Redis refuses all of them before any is added.

local stream, prefix, window = KEYS[1], ARGV[1], ARGV[2]
local answer = {}
for at = 3, #ARGV, 4 do
  local id, digest, bytes, traceparent = unpack(ARGV, at, at + 3)
  local key = prefix .. 'published:' .. id
  local known = redis.call('GET', key)
  if known then
    local entry, before = string.match(known, '^(%S+) (%S+)$')
    answer[#answer + 1] = before == digest and 'known' or 'differs'
    answer[#answer + 1] = entry or ''
  else
    local entry
    if traceparent == '' then
      entry = redis.call('XADD', stream, '*', 'event', bytes)
    else
      entry = redis.call('XADD', stream, '*', 'event', bytes, 'traceparent', traceparent)
    end
    redis.call('SET', key, entry .. ' ' .. digest, 'PX', window)
    answer[#answer + 1] = 'added'
    answer[#answer + 1] = entry
  end
end
return answer
