#!lua flags=no-writes
-- The intents whose deadline has come, the oldest first, and when the next one does. Where more are due than are asked for, those
-- after a place among the first of them: several who ask then seldom get the same.
-- KEYS    1 deadlines  2 clock
-- ARGV    1 most intents  2 start of the records' keys  3 the place, from 0 for the oldest to 1
-- Answer  {the stamp of a change of now µs, speed of the clock, target of an unfinished advance or '', next deadline µs or '',
--         intent, record or '', …}
-- Flags   no-writes.

local most = require_count(ARGV[1], 1, MAX_ITEMS)
local place = tonumber(ARGV[3])
if not place or place < 0 or place > 1 then
  error({err = 'ERR ' .. ARGV[3] .. ' is no place'})
end
-- How many pages deep: far enough to part those who ask, near enough to skip.
local MOST_SKIPPED = 10
local now = next_stamp(KEYS[2])
local target, speed = unpack(call('HMGET', KEYS[2], 'target', 'speed'))
local beyond = math.max(call('ZCOUNT', KEYS[1], '-inf', whole(now)) - most, 0)
local skipped = math.floor(place * math.min(beyond, MOST_SKIPPED * most))
local due = call('ZRANGE', KEYS[1], '-inf', whole(now), 'BYSCORE', 'LIMIT', whole(skipped), most)
local first = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local answer = {whole(now), speed or '1', target or '', first[2] or ''}
local records = {}
for i = 1, #due do
  records[i] = ARGV[2] .. due[i]
end
-- One of another type is as good as none here: whoever takes it further is told.
records = #due > 0 and call('MGET', unpack(records)) or records
for i = 1, #due do
  answer[3 + 2 * i], answer[4 + 2 * i] = due[i], records[i] or ''
end
return answer
