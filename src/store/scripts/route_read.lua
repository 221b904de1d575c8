#!lua flags=no-writes
-- Looks at entries of a routed stream behind an id, to pass them on. No fence: `append` is one.
-- KEYS    1 stream  2 mode  3 cursor  4 places
-- ARGV    1 id  2 most entries
--         3 longest value of an entry that is not passed on as it is  4 and how many bytes and 5 fields such an entry has more than
--         6 1 to be told of the stream as well: Redis copies its first and its last entry for that
-- Answer  {'ENTRIES', now ms, 1 if there may be more, last id that the stream gave out or '', oldest entry or '', cursor or '',
--          'head head …', text, text, …}
--         | {'MODE', mode or ''}: it is not routed
--         head: the entry's id, alone where it has one field `event` and nothing else; its text is then that field's value
--         or id:length,length,… of names and values in turn, which its text has one behind the other
--         or id:lengths:place or id:lengths:place:endpoint, with lengths that may be empty: see `read.lua`
-- Flags   no-writes: it can run on a full Redis, and changes nothing.

local MAX_ROUTED = 2000

local stream, places = KEYS[1], KEYS[4]
require_types(stream, 'stream', KEYS[2], 'string', KEYS[3], 'string', places, 'zset')
local mode = call('GET', KEYS[2])
if not mode or sub(mode, 1, 7) ~= 'routed ' then
  return {'MODE', mode or ''}
end
local from, left = ARGV[1], require_count(ARGV[2], 1, MAX_ROUTED)
local max_value, max_bytes, max_fields = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local has_places = call('EXISTS', places) == 1

-- Of an entry that is too large or has too many fields for one call, what Herald reads: the first of each of these, cut.
local function reduced(fields)
  local kept, seen = {}, {}
  for i = 1, #fields, 2 do
    local name = fields[i]
    if not seen[name] and (name == 'event' or name == 'traceparent' or name == 'account-sequence') then
      seen[name] = true
      kept[#kept + 1], kept[#kept + 2] = name, sub(fields[i + 1], 1, max_value)
    end
  end
  return kept[1] and kept or {sub(fields[1], 1, max_value), sub(fields[2], 1, max_value)}
end

local function packed(id, fields)
  local place, only
  if has_places then
    place, only = place_in(places, id)
  end
  local function is_plain()
    return #fields == 2 and fields[1] == 'event' and #fields[2] <= max_bytes
  end
  local lengths, text = '', nil
  if not is_plain() then
    text = #fields <= 2 * max_fields and table.concat(fields)
    if not text or #text > max_bytes then
      fields = reduced(fields)
      text = table.concat(fields)
    end
  end
  if is_plain() then
    text = fields[2]
  else
    local all = {}
    for i = 1, #fields do
      all[i] = whole(#fields[i])
    end
    lengths = table.concat(all, ',')
  end
  if place then
    return id .. ':' .. lengths .. ':' .. place .. (only and ':' .. only or ''), text
  elseif lengths ~= '' then
    return id .. ':' .. lengths, text
  end
  return id, text
end

local last, oldest = '', ''
if ARGV[6] == '1' then
  local info = call('EXISTS', stream) == 1 and by_name(call('XINFO', 'STREAM', stream)) or {}
  last, oldest = info['last-generated-id'] or '0-0', info['first-entry'] and info['first-entry'][1] or ''
end
local answer = {'ENTRIES', now_ms(), 1, last, oldest, call('GET', KEYS[3]) or '', ''}
local heads, taken, bytes, chunk = {}, 0, 0, 64
while left > 0 and bytes < MAX_READ_BYTES do
  chunk = math.min(chunk, left)
  local entries = call('XRANGE', stream, '(' .. from, '+', 'COUNT', whole(chunk))
  for i = 1, #entries do
    local head, text = packed(entries[i][1], entries[i][2])
    taken, bytes = taken + 1, bytes + #text
    heads[taken], answer[7 + taken], from = head, text, entries[i][1]
    if bytes >= MAX_READ_BYTES then
      break
    end
  end
  left = left - #entries
  if #entries < chunk then
    answer[3] = bytes >= MAX_READ_BYTES and 1 or 0
    break
  end
  chunk = math.max(1, math.min(256, math.floor((MAX_READ_BYTES - bytes) / (bytes / taken + 1))))
end
answer[7] = table.concat(heads, ' ')
return answer
