#!lua flags=no-writes
-- Looks at entries of a routed stream behind an id, to pass them on. No fence: `append` is one.
-- KEYS    1 stream  2 mode  3 cursor  4 places
-- ARGV    1 id  2 most entries
--         3 longest value of an entry that is not passed on as it is  4 and how many bytes and 5 fields such an entry has more than
--         6 1 to be told of the stream as well: Redis copies its first and its last entry for that
-- Answer  {'ENTRIES', now ms, 1 if there may be more, last id that the stream gave out or '', oldest entry or '', cursor or '',
--          'head head …', text, text, …}
--         | {'MODE', mode or ''}: it is not routed
--         head, text: see `passing.lua`
-- Flags   no-writes: it can run on a full Redis, and changes nothing.

local MAX_ROUTED = 2000

local stream, places = KEYS[1], KEYS[4]
require_types(stream, 'stream', KEYS[2], 'string', KEYS[3], 'string', places, 'zset')
local mode = call('GET', KEYS[2])
if not mode or sub(mode, 1, 7) ~= 'routed ' then
  return {'MODE', mode or ''}
end
local from, left = ARGV[1], require_count(ARGV[2], 1, MAX_ROUTED)
local limits = {value = tonumber(ARGV[3]), bytes = tonumber(ARGV[4]), fields = tonumber(ARGV[5])}
local known_places = call('EXISTS', places) == 1 and places

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
    local head, text = packed(entries[i][1], entries[i][2], known_places, limits)
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
