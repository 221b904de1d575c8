#!lua
-- Adds events to the stream in their order, each once within a while: one whose id was published in that time is not added
-- again, and its entry is told instead, or that its bytes were others.
-- KEYS    1 the stream   2 mode   3 gate   4 routed
-- ARGV    1 the prefix of its companions   2 the while, in ms
--         3 the entry of the stream above that this part must have taken before; '' for the outermost one
--         then of each event: id, digest, bytes, traceparent or ''
-- Answer  for each event two texts: added, known or differs; and its entry
--         | {'ROUTED'}: its events go to its parts now | {'BEHIND'}: it has not taken what was published above it before
-- A full Redis refuses all of them before any is added.

local stream, prefix, window, above = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
require_types(stream, 'stream', KEYS[2], 'string', KEYS[3], 'string', KEYS[4], 'string')
if sub(call('GET', KEYS[2]) or '', 1, 6) == 'routed' then
  return {'ROUTED'}
end
if above ~= '' then
  local routed = call('GET', KEYS[4])
  if call('EXISTS', KEYS[3]) == 1 or not routed or not is_entry(routed) or pad(routed) < pad(above) then
    return {'BEHIND'}
  end
end

local answer = {}
for at = 4, #ARGV, 4 do
  local id, digest, bytes, traceparent = unpack(ARGV, at, at + 3)
  local key = prefix .. 'published:' .. id
  local known = call('GET', key)
  if known then
    local entry, before = match(known, '^(%S+) (%S+)$')
    answer[#answer + 1] = before == digest and 'known' or 'differs'
    answer[#answer + 1] = entry or ''
  else
    local entry
    if traceparent == '' then
      entry = call('XADD', stream, '*', 'event', bytes)
    else
      entry = call('XADD', stream, '*', 'event', bytes, 'traceparent', traceparent)
    end
    call('SET', key, entry .. ' ' .. digest, 'PX', window)
    answer[#answer + 1] = 'added'
    answer[#answer + 1] = entry
  end
end
return answer
