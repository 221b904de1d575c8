#!lua flags=no-writes
-- The unfinished records of each endpoint, and when it was last noted that it cannot be read, a page at a time. An endpoint may
-- come twice.
-- KEYS    1 lease  2 unfinished  3 bytes  4 unreadable
-- ARGV    1 term  2 prefix of this partition's keys  3 cursor
-- Answer  {'COUNTS', next cursor or '0', endpoint, records, parked, bytes, noted ms or false, endpoint, …} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local page = call('HSCAN', KEYS[2], ARGV[3], 'COUNT', 100)
local answer = {'COUNTS', page[1]}
for i = 1, #page[2], 2 do
  local endpoint, records = page[2][i], page[2][i + 1]
  -- What a stranger wrote ends nobody's term: a field that names no endpoint is skipped, a count that is no number is
  -- recomputed.
  if find(endpoint, '^ep_[%w_-]*$') and #endpoint <= MAX_ID_BYTES then
    local at, parked = #answer, try('ZCARD', ARGV[2] .. 'backlog:' .. endpoint)
    local bytes = try('HGET', KEYS[3], endpoint)
    answer[at + 1] = endpoint
    answer[at + 2] = find(records, '^%d+$') and #records < 16 and tonumber(records) or records_of(ARGV[2], endpoint)
    answer[at + 3] = type(parked) == 'number' and parked or 0
    answer[at + 4] = type(bytes) == 'string' and find(bytes, '^%d+$') and #bytes < 16 and tonumber(bytes) or 0
    local noted = try('ZSCORE', KEYS[4], endpoint)
    answer[at + 5] = type(noted) == 'string' and find(noted, '^%d+$') and #noted < 16 and tonumber(noted) or false
  end
end
return answer
