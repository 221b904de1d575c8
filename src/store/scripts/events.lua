#!lua flags=no-writes
-- The entries of the stream after one, for the history, with what an event has. What is too long for an event stays in the server.
-- KEYS    1 stream
-- ARGV    1 entry id to read after  2 most entries  3 longest event in bytes
-- Answer  {length, entries added, last generated id, now ms, first id, {id, event, number, traceparent}, …} | {} without a stream
--         first id: of what is there now, or the last generated one
--         event: '' where there is none, or none that short, or where it came again (field `replay`); number: from the field `account-sequence`, or ''
--         A page ends early where its entries are large.
-- Flags   no-writes.

local MAX_BYTES = 2097152
local MAX_TEXT = 256

if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end

local function by_name(list)
  local fields = {}
  for i = 1, #list, 2 do
    if fields[list[i]] == nil then
      fields[list[i]] = list[i + 1]
    end
  end
  return fields
end

local function within(text, most)
  return text and #text <= most and text or ''
end

local info = by_name(redis.call('XINFO', 'STREAM', KEYS[1]))
local last = info['last-generated-id']
local time = redis.call('TIME')
local now = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local first = info['first-entry']
local answer = {info['length'], info['entries-added'], last, now, first and first[1] or last}
-- Nothing comes after the last possible id.
if ARGV[1] == last then
  return answer
end
local bytes = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])) do
  local fields = by_name(entry[2])
  local event = fields['replay'] and '' or within(fields['event'], tonumber(ARGV[3]))
  bytes = bytes + #event
  answer[#answer + 1] =
    {entry[1], event, within(fields['account-sequence'], MAX_TEXT), within(fields['traceparent'], MAX_TEXT)}
  if bytes > MAX_BYTES then
    break
  end
end
return answer
