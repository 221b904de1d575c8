#!lua
-- Adds events that the history kept to the stream again, for one endpoint alone and in the places that they had in the order, for an
-- operation: the entries, whose they are, and how far the operation is then are one step.
-- KEYS    1 lease  2 operation:ID  3 operation-endpoints:ID  4 operation-claims  5 stream  6 places
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 endpoint  5 its place before  6 its place after, or `end`
--         7 why none of them is sent again, or '', then for each event its entry, its bytes, its number among its account's or '', and
--         its traceparent or ''
-- Answer  {'TAKEN', for each event its new entry, or why there is none: `refused`, or `full`, when there were more than planned} |
--         {'STUCK', why the stream takes nothing} | {'STOPPED'}, it is not running | {'MOVED'}, the place is another | {'LOST'}
-- Flags   none: what goes out again can wait until a full Redis has some room.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, endpoints, claims, stream, places = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local prefix, id, endpoint, before, after, refusal = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
require_types(key, 'hash', endpoints, 'hash', claims, 'hash', stream, 'stream', places, 'zset',
  prefix .. 'operation-results:' .. id, 'stream')
local events = (#ARGV - 7) / 4
if events > MAX_ITEMS or events ~= math.floor(events) then
  error({err = 'ERR there are not four texts of each event, or too many events; nothing was changed'})
end
if call('HGET', key, 'state') ~= 'running' then
  return {'STOPPED'}
elseif call('HGET', endpoints, endpoint) ~= before then
  return {'MOVED'}
end

-- A key that no producer may write to says whose place an entry has, and for whom alone it is.
local function add(entry, body, number, traceparent)
  local fields = {'event', body, 'replay', id}
  if number ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'account-sequence', number
  end
  if traceparent ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'traceparent', traceparent
  end
  local new = try('XADD', stream, '*', unpack(fields))
  if type(new) ~= 'string' then
    return nil, new.err
  end
  local padded = pad(new)
  -- An older stream may have given out the same id.
  call('ZREMRANGEBYLEX', places, '[' .. padded .. ' ', '(' .. padded .. '!')
  call('ZADD', places, 0, padded .. ' ' .. pad(place_in(places, entry) or entry) .. ' ' .. endpoint)
  call('HSET', claims, new .. ':' .. endpoint, id .. ' 0 replayed')
  return new
end

local room = count_in(key, 'count') - count_in(key, 'taken')
local answer, taken, opened = {'TAKEN'}, 0, 0
for at = 8, #ARGV, 4 do
  if taken >= room then
    answer[#answer + 1] = 'full'
  elseif refusal ~= '' then
    taken = taken + 1
    book(prefix, id, ARGV[at] .. ':' .. endpoint, 'refused', refusal)
    answer[#answer + 1] = 'refused'
  else
    local new, why = add(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3])
    if not new and taken == 0 then
      return {'STUCK', why}
    elseif not new then
      error({err = 'ERR the stream took some of the events and then no more: ' .. why})
    end
    taken, opened = taken + 1, opened + 1
    answer[#answer + 1] = new
  end
end
call('HINCRBY', key, 'taken', taken)
call('HINCRBY', key, 'open', opened)
if after == 'end' then
  call('HDEL', endpoints, endpoint)
else
  call('HSET', endpoints, endpoint, after)
end
return answer
