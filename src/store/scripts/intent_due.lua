#!lua flags=no-writes
-- The intents whose deadline has come, the oldest first, and when the next one does.
-- KEYS    1 deadlines  2 clock
-- ARGV    1 most intents  2 start of the records' keys
-- Answer  {the stamp of a change of now µs, speed of the clock, target of an unfinished advance or '', next deadline µs or '',
--         intent, record or '', …}
-- Flags   no-writes.

local most = require_count(ARGV[1], 1, MAX_ITEMS)
local now = next_stamp(KEYS[2])
local target, speed = unpack(call('HMGET', KEYS[2], 'target', 'speed'))
local due = call('ZRANGE', KEYS[1], '-inf', whole(now), 'BYSCORE', 'LIMIT', 0, most)
local first = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local answer = {whole(now), speed or '1', target or '', first[2] or ''}
for i = 1, #due do
  answer[3 + 2 * i], answer[4 + 2 * i] = due[i], call('GET', ARGV[2] .. due[i]) or ''
end
return answer
