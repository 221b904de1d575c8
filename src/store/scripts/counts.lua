#!lua flags=no-writes
-- What is unfinished per endpoint, a page at a time. An endpoint may come twice.
-- KEYS    1 lease  2 unfinished  3 bytes
-- ARGV    1 term  2 prefix of this partition's keys  3 cursor
-- Answer  {'COUNTS', next cursor or '0', endpoint, records, parked, bytes, endpoint, …} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local page = call('HSCAN', KEYS[2], ARGV[3], 'COUNT', 100)
local answer = {'COUNTS', page[1]}
for i = 1, #page[2], 2 do
  local endpoint, at = page[2][i], #answer
  answer[at + 1], answer[at + 2] = endpoint, tonumber(page[2][i + 1])
  -- A key that somebody else wrote stops its endpoint, not the term of everybody.
  local parked = try('ZCARD', ARGV[2] .. 'backlog:' .. endpoint)
  answer[at + 3] = type(parked) == 'number' and parked or 0
  local bytes = try('HGET', KEYS[3], endpoint)
  answer[at + 4] = type(bytes) == 'string' and find(bytes, '^%d+$') and #bytes < 16 and tonumber(bytes) or 0
end
return answer
