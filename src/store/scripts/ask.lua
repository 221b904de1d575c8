#!lua flags=no-writes
-- What there is of deliveries that were read, and of their intents.
-- KEYS    1 lease
-- ARGV    1 term  2 prefix of this partition's keys  3 whether they may have been read before, 0 or 1
--         then per delivery: endpoint, intent, delivery id, event
-- Answer  {'ASKED', per delivery: unfinished of its intent in order, those without order, 1 if it has a record or a dead
--         letter, 2 if the one under its id is of another event, or else 0} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, suspect = ARGV[2], ARGV[3] == '1'
require_count(whole((#ARGV - 3) / 4), 0, MAX_ITEMS)

-- Whether the key's head names the event. What is no string was not written by Herald, and says of no event that it is done.
local function is_of(key, event)
  local head = redis.pcall('GETRANGE', key, 0, 1023)
  return type(head) == 'string' and find(head, '"event":"' .. event .. '"', 1, true)
end

-- Looking for a record is dear where there are many, and hardly ever is there one.
local function recorded(id, event)
  local record, letter = prefix .. 'delivery:' .. id, prefix .. 'dead-letter:' .. id
  if call('EXISTS', record, letter) == 0 then
    return 0
  end
  return (is_of(record, event) or is_of(letter, event)) and 1 or 2
end

local answer = {'ASKED'}
for i = 4, #ARGV, 4 do
  local intent = ARGV[i + 1]
  -- What is no hash was not written by Herald. A settle will say so; here it is one endpoint's, and no reason to tell
  -- nothing of the others.
  local counts = redis.pcall('HMGET', prefix .. 'chains:' .. ARGV[i], intent, '~' .. intent)
  local ordered, single = tonumber(counts[1] or 0), tonumber(counts[2] or 0)
  local at = #answer
  answer[at + 1], answer[at + 2] = ordered, single
  -- A record is counted under its intent.
  answer[at + 3] = (suspect or ordered + single > 0) and recorded(ARGV[i + 2], ARGV[i + 3]) or 0
end
return answer
