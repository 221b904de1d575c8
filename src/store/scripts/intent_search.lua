#!lua flags=no-writes
-- A page of an account's intents by the instant of their creation.
-- KEYS    1… indexes of the statuses that are asked for
-- ARGV    1 start of the records' keys  2 from µs  3 to µs, both included  4 'newest' or 'oldest' first  5 most intents
-- Answer  {created µs, intent, record or '', …}
-- Flags   no-writes.

local from, to, most = require_micros(ARGV[2]), require_micros(ARGV[3]), require_count(ARGV[5], 1, MAX_ITEMS)
local is_newest = ARGV[4] == 'newest'
local found = {}
for i = 1, #KEYS do
  local page
  if is_newest then
    page = call('ZRANGE', KEYS[i], whole(to), whole(from), 'BYSCORE', 'REV', 'LIMIT', 0, most, 'WITHSCORES')
  else
    page = call('ZRANGE', KEYS[i], whole(from), whole(to), 'BYSCORE', 'LIMIT', 0, most, 'WITHSCORES')
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
local answer = {}
for i = 1, math.min(most, #found) do
  answer[3 * i - 2], answer[3 * i - 1] = whole(found[i].at), found[i].id
  answer[3 * i] = call('GET', ARGV[1] .. found[i].id) or ''
end
return answer
