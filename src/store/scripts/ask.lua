#!lua flags=no-writes
-- What there is of deliveries that were read, and of their intents.
-- KEYS    1 lease
-- ARGV    1 term  2 prefix of this partition's keys  3 whether they may have been read before, 0 or 1
--         then per delivery: endpoint, intent, delivery id
-- Answer  {'ASKED', per delivery: unfinished of its intent in order, those without order, 1 if it has a record or a dead
--         letter or else 0} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, suspect = ARGV[2], ARGV[3] == '1'
require_count(whole((#ARGV - 3) / 3), 0, MAX_ITEMS)
local answer = {'ASKED'}
for i = 4, #ARGV, 3 do
  local intent = ARGV[i + 1]
  local counts = call('HMGET', prefix .. 'chains:' .. ARGV[i], intent, '~' .. intent)
  local ordered, single = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  local found = 0
  -- A record is counted under its intent, and looking for one is dear where there are many.
  if suspect or ordered + single > 0 then
    found = call('EXISTS', prefix .. 'delivery:' .. ARGV[i + 2], prefix .. 'dead-letter:' .. ARGV[i + 2])
  end
  answer[i - 2], answer[i - 1], answer[i] = ordered, single, found > 0 and 1 or 0
end
return answer
