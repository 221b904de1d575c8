#!lua flags=no-writes
-- What Redis holds of deliveries that were read, and of their intents.
-- KEYS    1 lease
-- ARGV    1 term  2 prefix of this partition's keys  3 whether they may have been read before, 0 or 1
--         then per delivery: endpoint, intent, delivery id, event
-- Answer  {'ASKED', per delivery: whether its intent has unfinished ones in order, whether without order, each 0 or 1;
--         1 if it has a record or a dead letter, 2 if the one under its id is of another event, or else 0} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, suspect = ARGV[2], ARGV[3] == '1'
require_count(whole((#ARGV - 3) / 4), 0, MAX_ITEMS)

-- Whether the key's head names the event. A value that is not a string was not written by Herald, and shows no event as
-- done.
local function is_of(key, event)
  local head = try('GETRANGE', key, 0, 1023)
  return type(head) == 'string' and find(head, '"event":"' .. event .. '"', 1, true)
end

-- Looking for a record is expensive where there are many, and there hardly ever is one.
local function recorded(id, event)
  local record, letter = prefix .. 'delivery:' .. id, prefix .. 'dead-letter:' .. id
  if call('EXISTS', record, letter) == 0 then
    return 0
  end
  return (is_of(record, event) or is_of(letter, event)) and 1 or 2
end

-- A key that is not a hash was not written by Herald. A settle will say so; here it concerns one endpoint only, and is
-- no reason to say nothing about the others.
local function has(key, field)
  return try('HEXISTS', key, field) == 1 and 1 or 0
end

local answer = {'ASKED'}
for i = 4, #ARGV, 4 do
  local endpoint, intent = ARGV[i], ARGV[i + 1]
  local ordered, single = has(prefix .. 'heads:' .. endpoint, intent), has(prefix .. 'singles:' .. endpoint, '~' .. intent)
  local at = #answer
  answer[at + 1], answer[at + 2] = ordered, single
  -- A record is found by its intent.
  answer[at + 3] = (suspect or ordered + single > 0) and recorded(ARGV[i + 2], ARGV[i + 3]) or 0
end
return answer
