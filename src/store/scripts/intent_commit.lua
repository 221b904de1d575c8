#!lua
-- Changes intents, one after the other, and tells of each, or does neither: what one of them fails by stops no other.
-- KEYS    1 deadlines  2 clock  3 counts  4 stream, then of each change
--         record  index of its status  index of the status before  feed of its account  idempotency key, if it has one
-- ARGV    1 start of the records' keys, then of each change
--         1 intent  2 account  3 its numbers, parted by spaces, each '-' for none:
--           revision that it is expected to have, 0 if there is none yet; deadline before which this must be, µs; deadline
--           that must have come, µs; next deadline, '=µs' or '+µs' from now; created at, µs, or now; for how long the answer
--           of an idempotency key is kept, ms
--         4 record  5 event up to its time, or '' without one  6 the rest of the event
--         7 hash of the request, or '' without an idempotency key  8 traceparent of the event's entry, or ''
-- Answer  of each change
--         {'OK', stamp µs, entry or '', number of the event within its account or ''}
--         {'STALE', the stamp of a change of now µs, record or ''}: it has another revision
--         {'LATE', that stamp}, {'EARLY', that stamp}: the deadline has come, or has not
--         {'TAKEN', answer}: the key was used
--         {'ERROR', what of}: nothing of it was done
--         The stamp is the instant of the change, later than that of every change before. A record is stored behind a line
--         `REVISION STAMP ENTRY NUMBER`, with - for the last two of a change without event; a key's answer is the request's
--         hash, the intent and the record, each in its line.
-- Flags   none: a full Redis refuses all of it.

local DUE, CLOCK, COUNTS, STREAM = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local PREFIX = ARGV[1]
local SHARED_KEYS, CHANGE_KEYS, CHANGE_ARGS = 4, 4, 8
local MAX_EXACT = 9007199254740991
local NUMBERS = '^(%d+) (%S+) (%S+) ([-=+])(%d*) (%S+) (%S+)$'
local floor = math.floor

-- What else is of a foreign type fails what is read of it, or one of the first writes of a change.
require_types(DUE, 'zset')
local now, last = read_clock(CLOCK)

-- What changes have in common is read once, and written once behind them: the numbers of accounts' events, the deadlines by intent
-- (false for none), and the last stamp.
local told, due_at, stamped = {}, {}, false
local accounts, counts = {}, {}
for args = 3, #ARGV, CHANGE_ARGS do
  accounts[#accounts + 1], counts[#counts + 1] = ARGV[args], 'events:' .. ARGV[args]
end
for i, count in ipairs(take('hash', 'HMGET', COUNTS, unpack(counts))) do
  told[accounts[i]] = count or '0'
end
counts = {}

local function optional(text)
  return text ~= '-' and require_micros(text)
end

-- `2022-02-01T13:07:41.8667850Z`. The days are counted as in Howard Hinnant's "chrono-compatible low-level date algorithms".
-- The digits of a second's part are those of the instant.
local second, second_text
local function rfc3339(micros, text)
  local seconds = floor(micros / 1000000)
  if seconds ~= second then
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
    second, second_text = seconds, format('%04d-%02d-%02dT%02d:%02d:%02d.', year, month, day, floor(of_day / 3600),
      floor(of_day / 60) % 60, of_day % 60)
  end
  return second_text .. sub(text, -6) .. '0Z'
end

local function change(keys, args)
  local record_key, index, index_before, feed = KEYS[keys + 1], KEYS[keys + 2], KEYS[keys + 3], KEYS[keys + 4]
  local id, account, numbers, json, head, tail, request, traceparent = unpack(ARGV, args + 1, args + CHANGE_ARGS)
  local expected, before, from, due_mode, due, created, keep_ms = match(numbers, NUMBERS)
  if not expected or (due_mode == '-') ~= (due == '') then
    error({err = 'ERR ' .. numbers .. ' are no numbers of a change'})
  end
  local answer_key = request ~= '' and KEYS[keys + 5]
  if answer_key then
    local taken = answer_of(answer_key, PREFIX)
    if taken then
      return {'TAKEN', taken}
    end
    require_count(keep_ms, 1, MAX_MICROS)
  end
  local number = head ~= '' and require_count(told[account], 0, MAX_EXACT - 1) + 1
  expected, before, from = require_count(expected, 0, MAX_EXACT), optional(before), optional(from)
  due = due ~= '' and require_micros(due)
  local created_at = optional(created)

  -- Checked on the stamp that this change would get, so that nothing is stamped after a deadline that came before it.
  local stamp = math.max(now, last + 1)
  local stamp_text = whole(stamp)
  local stored = take('string', 'GET', record_key)
  local revision = stored and tonumber(match(stored, '^(%d+) ')) or 0
  if revision ~= expected then
    return {'STALE', stamp_text, stored or ''}
  end
  if before and stamp >= before then
    return {'LATE', stamp_text}
  end
  if from and stamp < from then
    return {'EARLY', stamp_text}
  end
  local created_text = created_at and created or stamp_text
  local moves, is_new = index ~= index_before, revision == 0

  -- The first writes are those that can fail: where one does, those before it are taken back.
  if moves or is_new then
    take('zset', 'ZADD', index, created_text, id)
  end
  if moves then
    local left = try('ZREM', index_before, id)
    if type(left) == 'table' then
      call('ZREM', index, id)
      require_types(index_before, 'zset')
      error(left)
    end
  end
  local entry = ''
  if number then
    local event = head .. rfc3339(stamp, stamp_text) .. tail
    number = whole(number)
    local fields = {'event', event, 'account-sequence', number}
    if traceparent ~= '' then
      fields[5], fields[6] = 'traceparent', traceparent
    end
    entry = try('XADD', STREAM, '*', unpack(fields))
    -- It may also be that a producer has used up the stream's ids.
    if type(entry) == 'table' then
      if moves or is_new then
        call('ZREM', index, id)
      end
      if moves then
        call('ZADD', index_before, created_text, id)
      end
      require_types(STREAM, 'stream')
      error(entry)
    end
    told[account], counts[account] = number, number
    -- What a stranger may have made of the feed undoes no change, and is counted. Its ids are the numbers.
    local fed = try('XADD', feed, number .. '-0', 'intent', id)
    if type(fed) == 'table' then
      try('HINCRBY', COUNTS, 'lost-feed', 1)
    end
  end
  local of_event = number and entry .. ' ' .. number or '- -'
  local record = whole(revision + 1) .. ' ' .. stamp_text .. ' ' .. of_event .. '\n' .. json
  call('SET', record_key, record)
  if answer_key then
    call('SET', answer_key, request .. '\n' .. id .. '\n' .. record, 'PX', keep_ms)
  end
  if due then
    due_at[id] = whole(due_mode == '+' and stamp + due or due)
  elseif not is_new or due_at[id] then
    due_at[id] = false
  end
  last, stamped = stamp, true
  return {'OK', stamp_text, entry, number or ''}
end

local answers, keys = {}, SHARED_KEYS
for args = 1, #ARGV - CHANGE_ARGS, CHANGE_ARGS do
  local done, answer = pcall(change, keys, args)
  if not done then
    answer = {'ERROR', type(answer) == 'table' and answer.err or answer}
  end
  answers[#answers + 1] = answer
  keys = keys + CHANGE_KEYS + (ARGV[args + CHANGE_ARGS - 1] ~= '' and 1 or 0)
end

local numbers, added, removed = {}, {}, {}
for account, number in pairs(counts) do
  numbers[#numbers + 1], numbers[#numbers + 2] = 'events:' .. account, number
end
for id, at in pairs(due_at) do
  if at then
    added[#added + 1], added[#added + 2] = at, id
  else
    removed[#removed + 1] = id
  end
end
if #numbers > 0 then
  call('HSET', COUNTS, unpack(numbers))
end
if #added > 0 then
  call('ZADD', DUE, unpack(added))
end
if #removed > 0 then
  call('ZREM', DUE, unpack(removed))
end
if stamped then
  call('HSET', CLOCK, 'last', whole(last))
end
return answers
