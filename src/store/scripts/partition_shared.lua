-- Put between `shared.lua` and every script of a partition. Entry ids are handled as text: both their halves can exceed 2^53, from
-- where on Lua's numbers skip values.

local MAX_ID_BYTES = 128
local MAX_U64 = '18446744073709551615'

local function now_ms()
  local time = call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function lost(lease, term)
  return call('GET', lease) ~= term
end

local function is_u64(digits)
  return #digits < 20 or (#digits == 20 and digits <= MAX_U64)
end

local function is_entry(text)
  -- In an id this short, as all real ones are, both halves are valid: one look instead of three.
  if #text < 21 then
    return find(text, '^%d+%-%d+$')
  end
  local ms, seq = match(text, '^(%d+)%-(%d+)$')
  return ms and is_u64(ms) and is_u64(seq)
end

-- MS-SEQ with both halves 20 wide: the order of the text is the order of the ids.
local function pad(entry)
  local ms, seq = match(entry, '^(%d+)%-(%d+)$')
  return rep('0', 20 - #ms) .. ms .. '-' .. rep('0', 20 - #seq) .. seq
end

local function unpad(padded)
  local ms, seq = match(padded, '^0*(%d+)%-0*(%d+)$')
  return ms .. '-' .. seq
end

-- The next lower number; `digits` is not 0.
local function less_one(digits)
  local head, last, zeros = match(digits, '^(%d-)([1-9])(0*)$')
  local lower = head .. (last - 1) .. rep('9', #zeros)
  return match(lower, '^0*(%d+)$')
end

-- The next higher number; `digits` is not the greatest.
local function plus_one(digits)
  local head, nines = match(digits, '^(%d-)(9*)$')
  if head == '' then
    return '1' .. rep('0', #nines)
  end
  return sub(head, 1, -2) .. (sub(head, -1) + 1) .. rep('0', #nines)
end

local function before(entry)
  local ms, seq = match(entry, '^(%d+)%-(%d+)$')
  if seq ~= '0' then
    return ms .. '-' .. less_one(seq)
  elseif ms ~= '0' then
    return less_one(ms) .. '-' .. MAX_U64
  end
  return entry
end

-- nil after the last id there can be.
local function after(entry)
  local ms, seq = match(entry, '^(%d+)%-(%d+)$')
  if seq ~= MAX_U64 then
    return ms .. '-' .. plus_one(seq)
  elseif ms ~= MAX_U64 then
    return plus_one(ms) .. '-0'
  end
end

-- The entry whose place in the order `entry` has, and the endpoint that alone it is for, or nil; nil if it came for the first
-- time: not back from the quarantine, and not again for one endpoint.
local function place_in(places, entry)
  local padded = pad(entry)
  local found = call('ZRANGEBYLEX', places, '[' .. padded .. ' ', '(' .. padded .. '!', 'LIMIT', 0, 1)[1]
  if not found then
    return nil
  end
  local place, only = match(found, '^%S+ (%S+) ?(%S*)')
  return place and unpad(place), only ~= '' and only or nil
end

-- Where the entries with this id stand in the quarantine, the oldest first. Nearly always there is one; but a stream
-- that was made anew gives out its ids again.
local function namesakes(index, entry)
  local all = {}
  for at in string.gmatch(call('HGET', index, entry) or '', '[^ ]+') do
    if is_entry(at) then
      all[#all + 1] = at
    end
  end
  return all
end

-- Writes down that one of the quarantined entries with this id is gone, and another has come; either may be nil.
local function index_quarantined(index, entry, gone, come)
  local all = {}
  for _, at in ipairs(namesakes(index, entry)) do
    if at ~= gone then
      all[#all + 1] = at
    end
  end
  all[#all + 1] = come
  if #all == 0 then
    call('HDEL', index, entry)
  else
    call('HSET', index, entry, table.concat(all, ' '))
  end
end

-- Moves a quarantined entry, {its id in the quarantine, its fields}, behind all others.
local function move_to_end(quarantine, index, found)
  local at = call('XADD', quarantine, '*', unpack(found[2]))
  index_quarantined(index, by_name(found[2]).entry or '', found[1], at)
  call('XDEL', quarantine, found[1])
end

-- The oldest quarantined entry with this id: its id in the quarantine, and its fields by name; nil if there is none.
local function quarantined(quarantine, index, entry)
  for _, at in ipairs(namesakes(index, entry)) do
    local found = call('XRANGE', quarantine, at, at)[1]
    if found then
      return at, by_name(found[2])
    end
  end
end

-- {id, record or false, id, record or false, …} of these delivery ids, up to MAX_READ_BYTES of records.
-- A record of a wrong type counts as gone. Fetched a few at a time, so that little is fetched in vain.
local function with_records(prefix, ids)
  local kept, count, bytes, at, all = {}, 0, 0, 1, #ids
  local of_record = prefix .. 'delivery:'
  while at <= all and bytes < MAX_READ_BYTES do
    local keys, few = {}, math.min(16, all - at + 1)
    for i = 1, few do
      keys[i] = of_record .. ids[at + i - 1]
    end
    for i, record in ipairs(call('MGET', unpack(keys))) do
      kept[count + 1], kept[count + 2] = ids[at + i - 1], record
      count = count + 2
      bytes = bytes + (record and #record or 0)
      if bytes >= MAX_READ_BYTES then
        break
      end
    end
    at = at + few
  end
  return kept
end

-- How many records an endpoint has: each is the head of its chain or held.
local function records_of(prefix, endpoint)
  local heads, held = try('HLEN', prefix .. 'heads:' .. endpoint), try('ZCARD', prefix .. 'held:' .. endpoint)
  return (type(heads) == 'number' and heads or 0) + (type(held) == 'number' and held or 0)
end

local function next_due(due)
  local first = call('ZRANGE', due, 0, 0, 'WITHSCORES')
  return first[2] and tonumber(first[2]) or false
end
