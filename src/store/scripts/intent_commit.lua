#!lua
-- Changes one intent and tells of it, or does neither.
-- KEYS    1 record  2 deadlines  3 clock  4 counts  5 stream  6 index of its status  7 index of the status before
--         8 feed of its account  9 idempotency key, optional
-- ARGV    1 intent  2 revision that it is expected to have, 0 if there is none yet
--         3 deadline before which this must be, µs or ''  4 deadline that must have come, µs or ''
--         5 record  6 next deadline: '=µs', '+µs' from now, or ''  7 created at µs, or '' for now
--         8 event up to its time, or '' without one  9 the rest of the event  10 account
--         11 hash of the request  12 for how long the key is kept, ms  13 start of the records' keys
-- Answer  {'OK', stamp µs, entry or '', number of the event within its account or ''}
--         {'STALE', the stamp of a change of now µs, record or ''}: it has another revision
--         {'LATE', that stamp}, {'EARLY', that stamp}: the deadline has come, or has not
--         {'TAKEN', answer}: the key was used
--         The stamp is the instant of the change, later than that of every change before. A record is stored behind a line
--         `REVISION STAMP ENTRY NUMBER`, with - for the last two of a change without event; a key's answer is the request's
--         hash, the intent and the record, each in its line.
-- Flags   none: a full Redis refuses all of it.

-- What else is of a foreign type fails what is read below, or one of the first writes.
require_types(KEYS[2], 'zset')
if KEYS[9] then
  local taken = answer_of(KEYS[9], ARGV[13])
  if taken then
    return {'TAKEN', taken}
  end
end
local id, account = ARGV[1], ARGV[10]
local event_count = 'events:' .. account
local told_before = require_count(take('hash', 'HGET', KEYS[4], event_count) or '0', 0, 9007199254740990)
local expected = require_count(ARGV[2], 0, 9007199254740991)
local due_mode, due_text = match(ARGV[6], '^([=+]?)(%d*)$')
if ARGV[6] ~= '' and (not due_mode or due_mode == '' or due_text == '') then
  error({err = 'ERR ' .. ARGV[6] .. ' is no deadline'})
end
local due = ARGV[6] ~= '' and require_micros(due_text)
local created = ARGV[7] ~= '' and require_micros(ARGV[7])
local before = ARGV[3] ~= '' and require_micros(ARGV[3])
local from = ARGV[4] ~= '' and require_micros(ARGV[4])
local keep_ms = KEYS[9] and require_count(ARGV[12], 1, MAX_MICROS)

-- Checked on the stamp that this change would get, so that nothing is stamped after a deadline that came before it.
local stamp = next_stamp(KEYS[3])
local stored = take('string', 'GET', KEYS[1])
local revision = stored and tonumber(match(stored, '^(%d+) ')) or 0
if revision ~= expected then
  return {'STALE', whole(stamp), stored or ''}
end
if before and stamp >= before then
  return {'LATE', whole(stamp)}
end
if from and stamp < from then
  return {'EARLY', whole(stamp)}
end

-- `2022-02-01T13:07:41.8667850Z`. The days are counted as in Howard Hinnant's "chrono-compatible low-level date algorithms".
local function rfc3339(micros)
  local floor = math.floor
  local seconds = floor(micros / 1000000)
  local days = floor(seconds / 86400)
  local of_day = seconds - days * 86400
  local shifted = days + 719468
  local era = floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local month = floor((5 * of_year + 2) / 153)
  local day = of_year - floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  year = year + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06d0Z', year, month, day, floor(of_day / 3600),
    floor(of_day / 60) % 60, of_day % 60, micros - seconds * 1000000)
end

local stamp_text, entry, number = whole(stamp), '', ''
local created_text = created and ARGV[7] or stamp_text
local moves, is_new = KEYS[6] ~= KEYS[7], revision == 0

-- The first writes are those that can fail: where one does, those before it are taken back.
if moves or is_new then
  take('zset', 'ZADD', KEYS[6], created_text, id)
end
local function take_back()
  if moves or is_new then
    call('ZREM', KEYS[6], id)
  end
end
if moves then
  local left = try('ZREM', KEYS[7], id)
  if type(left) == 'table' then
    take_back()
    require_types(KEYS[7], 'zset')
    error(left)
  end
end
if ARGV[8] ~= '' then
  number = whole(told_before + 1)
  local event = ARGV[8] .. rfc3339(stamp) .. ARGV[9]
  entry = try('XADD', KEYS[5], '*', 'event', event, 'account-sequence', number)
  -- It may also be that a producer has used up the stream's ids.
  if type(entry) == 'table' then
    take_back()
    if moves then
      call('ZADD', KEYS[7], created_text, id)
    end
    require_types(KEYS[5], 'stream')
    error(entry)
  end
  call('HSET', KEYS[4], event_count, number)
  -- What a stranger may have made of the feed undoes no change, and is counted. Its ids are the numbers.
  local fed = try('XADD', KEYS[8], number .. '-0', 'intent', id)
  if type(fed) == 'table' then
    try('HINCRBY', KEYS[4], 'lost-feed', 1)
  end
end
local told = entry ~= '' and entry .. ' ' .. number or '- -'
local record = whole(revision + 1) .. ' ' .. stamp_text .. ' ' .. told .. '\n' .. ARGV[5]
call('SET', KEYS[1], record)
if due then
  call('ZADD', KEYS[2], whole(due_mode == '+' and stamp + due or due), id)
elseif not is_new then
  call('ZREM', KEYS[2], id)
end
call('HSET', KEYS[3], 'last', stamp_text)
if KEYS[9] then
  call('SET', KEYS[9], ARGV[11] .. '\n' .. id .. '\n' .. record, 'PX', whole(keep_ms))
end
return {'OK', stamp_text, entry, number}
