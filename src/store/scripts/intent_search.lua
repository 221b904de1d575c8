#!lua flags=no-writes
-- A page of an account's intents by the instant of their creation.
-- KEYS    1… indexes of the statuses that are asked for
-- ARGV    1 start of the records' keys  2 from µs  3 to µs, both included  4 'newest' or 'oldest' first  5 most intents
-- Answer  {1 if there are more, created µs, intent, record or '', …}; a page ends early where its records are large
-- Flags   no-writes.

local from, to, most = require_micros(ARGV[2]), require_micros(ARGV[3]), require_count(ARGV[5], 1, MAX_ITEMS)
local is_newest = ARGV[4] == 'newest'
local found = {}
for i = 1, #KEYS - 1 do
  local page
  if is_newest then
    page = call('ZRANGE', KEYS[i], whole(to), whole(from), 'BYSCORE', 'REV', 'LIMIT', 0, most + 1, 'WITHSCORES')
  else
    page = call('ZRANGE', KEYS[i], whole(from), whole(to), 'BYSCORE', 'LIMIT', 0, most + 1, 'WITHSCORES')
  end
  for j = 1, #page, 2 do
    found[#found + 1] = {at = tonumber(page[j + 1]), id = page[j]}
  end
end
table.sort(found, function(a, b)
  if a.at ~= b.at then
    return (a.at > b.at) == is_newest
  end
  return (a.id > b.id) == is_newest
end)
local answer, bytes, shown = {}, 0, 0
while shown < #found and shown < most and bytes < MAX_READ_BYTES do
  shown = shown + 1
  local record = call('GET', ARGV[1] .. found[shown].id) or ''
  bytes = bytes + #record
  answer[3 * shown - 1], answer[3 * shown], answer[3 * shown + 1] = whole(found[shown].at), found[shown].id, record
end
answer[1] = shown < #found and '1' or '0'
return answer
