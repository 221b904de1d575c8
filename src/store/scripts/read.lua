#!lua flags=allow-oom
-- Takes entries for the group: what is pending after an id, or what is new.
-- KEYS    1 stream  2 lease  3 places
-- ARGV    1 term  2 '>' or the entry id to read the pending after  3 most entries  4 group  5 consumer
--         6 longest event in bytes  7 where a traceparent is cut
-- Answer  {'ENTRIES', now ms, 'head head …', text, text, …} | {'LOST'} | {'NOGROUP'}
--         head: the entry's id, alone where the text is the whole event; or id:length:traceparent, or
--         id:length:traceparent:place, or id:length:traceparent:place:number with a place that may be empty
--         length: of the whole event; -1 when there is no field `event`, then the text shows the fields;
--         -2 when the entry was trimmed while pending
--         traceparent: how many bytes of it stand at the end of the text, behind the event; -1 without one
--         number: of the event among its account's, from the field `account-sequence`
--         place: the entry whose place in the order it has, when it came back from the quarantine
--         number may be followed by the endpoint that alone the event is for, and is then possibly empty
--         Few parts, because each costs both sides more than its bytes do.
-- Flags   allow-oom: what is read and delivered frees memory, and what is pending costs little more. Who reads from a
--         full Redis reads little at a time, and leaves in the stream what it would have to write a record for.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, from, group, consumer = KEYS[1], ARGV[2], ARGV[4], ARGV[5]
local left = require_count(ARGV[3], 0, MAX_ITEMS)
local max_event, max_traceparent = tonumber(ARGV[6]), tonumber(ARGV[7])
local has_places = call('EXISTS', KEYS[3]) == 1

-- ':' and the entry whose place this one has, and the endpoint that alone it is for; nothing for nearly all.
local function place_of(id)
  if has_places then
    local place, only = place_in(KEYS[3], id)
    return place and ':' .. place, only
  end
end

-- All names and values with blanks between, up to `max_event`.
local function preview(fields)
  local parts, bytes = {}, 0
  for i = 1, #fields do
    parts[i] = sub(fields[i], 1, max_event)
    bytes = bytes + #parts[i] + 1
    if bytes > max_event then
      break
    end
  end
  return sub(table.concat(parts, ' '), 1, max_event)
end

-- The head of an entry, its text, and how much of that counts.
local function content(id, fields)
  if not fields then
    return id .. ':-2:-1' .. (place_of(id) or ''), '', 0
  end
  local body, traceparent, number
  for i = 1, #fields, 2 do
    if fields[i] == 'event' then
      body = body or fields[i + 1]
    elseif fields[i] == 'traceparent' then
      traceparent = traceparent or fields[i + 1]
    elseif fields[i] == 'account-sequence' then
      number = number or fields[i + 1]
    end
  end
  local place, only = place_of(id)
  if not body then
    local shown = preview(fields)
    return id .. ':-1:-1' .. (place or ''), shown, #shown
  end
  local length = #body
  -- What is no number, or one that is not counted exactly, is none.
  if number and (#number > 16 or not find(number, '^[1-9]%d*$') or tonumber(number) > 9007199254740991) then
    number = nil
  end
  if length <= max_event and not traceparent and not place and not number then
    return id, body, length
  end
  traceparent = traceparent and sub(traceparent, 1, max_traceparent)
  body = sub(body, 1, max_event)
  local head = id .. ':' .. length .. ':' .. (traceparent and #traceparent or -1)
  if only then
    head = head .. place .. ':' .. (number or '') .. ':' .. only
  elseif number then
    head = head .. (place or ':') .. ':' .. number
  elseif place then
    head = head .. place
  end
  return head, body .. (traceparent or ''), #body
end

-- How much the group has read is set by Herald. Redis 7.0 tells neither its replicas nor its file, so its count would be short later, as if
-- entries had gone unread; and later ones, like Valkey, count what was gone before it was read as read.
local known, last
if from == '>' then
  for _, flat in ipairs(try('XINFO', 'GROUPS', stream) or {}) do
    local found = by_name(flat)
    known = found.name == group and found['entries-read'] or known
  end
end
local answer, heads, bytes, taken = {'ENTRIES', now_ms(), ''}, {}, 0, 0
-- What XREADGROUP has handed out cannot be given back, so a few are taken first, and then as many as should fit.
local chunk = 8
while left > 0 and bytes < MAX_READ_BYTES do
  chunk = math.min(chunk, left)
  local read = try('XREADGROUP', 'GROUP', group, consumer, 'COUNT', whole(chunk), 'STREAMS', stream, from)
  if read and read.err then
    if sub(read.err, 1, 7) == 'NOGROUP' then
      return {'NOGROUP'}
    end
    error(read)
  end
  local entries = read and read[1] and read[1][2] or {}
  for i = 1, #entries do
    local head, text, size = content(entries[i][1], entries[i][2])
    heads[taken + i], answer[3 + taken + i] = head, text
    bytes = bytes + size
  end
  taken, left = taken + #entries, left - #entries
  last = #entries > 0 and entries[#entries][1] or last
  if #entries < chunk then
    break
  end
  if from ~= '>' then
    from = entries[#entries][1]
  end
  local mean = bytes / taken + 1
  chunk = math.max(1, math.min(32, math.floor((MAX_READ_BYTES - bytes) / mean)))
end
if known and taken > 0 then
  -- What was read must be answered whatever comes of this.
  try('XGROUP', 'SETID', stream, group, last, 'ENTRIESREAD', whole(known + taken))
end
answer[3] = table.concat(heads, ' ')
return answer
