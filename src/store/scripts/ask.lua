#!lua flags=no-writes
-- How many unfinished records chains have, and which deliveries have a record or a dead letter.
-- KEYS    1 lease
-- ARGV    1 term  2 prefix of this partition's keys  3 number of chains
--         then per chain: endpoint, intent; then delivery ids
-- Answer  {'ASKED', number of chains, in order, without order, …, 0 or 1 per delivery id, …} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, chains = ARGV[2], require_count(ARGV[3], 0, MAX_ITEMS)
require_count(whole(#ARGV - 3 - 2 * chains), 0, MAX_ITEMS)
local answer, at = {'ASKED', chains}, 2
for i = 4, 3 + 2 * chains, 2 do
  local intent = ARGV[i + 1]
  local counts = call('HMGET', prefix .. 'chains:' .. ARGV[i], intent, '~' .. intent)
  answer[at + 1], answer[at + 2] = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  at = at + 2
end
for i = 4 + 2 * chains, #ARGV do
  local found = call('EXISTS', prefix .. 'delivery:' .. ARGV[i], prefix .. 'dead-letter:' .. ARGV[i])
  at = at + 1
  answer[at] = found > 0 and 1 or 0
end
return answer
