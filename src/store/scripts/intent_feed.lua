#!lua flags=no-writes
-- A page of what an account was told, in the order of its numbers.
-- KEYS    1 feed of the account  2 counts
-- ARGV    1 start of the records' keys  2 account  3 number after which it begins  4 most events
-- Answer  {number of the account's last event, 1 if there is more, number, intent, record or '', …}; a page ends early where
--         its records are large, and a record that stood on the page before is '='
-- Flags   no-writes.

require_types(KEYS[1], 'stream', KEYS[2], 'hash')
local after, most = require_count(ARGV[3], 0, 9007199254740990), require_count(ARGV[4], 1, MAX_ITEMS)
local counted = call('HGET', KEYS[2], 'events:' .. ARGV[2]) or '0'
local entries = call('XRANGE', KEYS[1], whole(after + 1) .. '-0', '+', 'COUNT', whole(most + 1))
local answer, bytes, seen, shown = {counted, '0'}, 0, {}, 0
while shown < #entries and shown < most and bytes < MAX_READ_BYTES do
  shown = shown + 1
  local id, record = by_name(entries[shown][2]).intent or '', '='
  if not seen[id] then
    record = call('GET', ARGV[1] .. id) or ''
    seen[id] = true
  end
  bytes = bytes + #record
  answer[3 * shown], answer[3 * shown + 1], answer[3 * shown + 2] = match(entries[shown][1], '^%d+'), id, record
end
if shown < #entries then
  answer[2] = '1'
end
return answer
