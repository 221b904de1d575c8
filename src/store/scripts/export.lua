#!lua flags=no-writes
-- What is unfinished in a stream that is being split, or the first of it: pending entries, then records chain by chain in their
-- order, then dead letters. Its owner takes out what its parts have, and looks again: so there is no cursor, and any owner can go on.
-- KEYS    1 stream  2 lease  3 cursor  4 unfinished  5 due  6 dead  7 dead-facts  8 places
-- ARGV    1 term  2 prefix of this partition's keys  3 group  4 most to return
--         5 longest value of an entry that is not passed on as it is  6 and how many bytes and 7 fields such an entry has more than
-- Answer  {'EXPORTED', now ms, last entry of the group, else the cursor, else '', {entry, head or '', text, …},
--         {id, chain's head field, place, record, …}, {id, died at, facts or '', letter or false, …},
--         {endpoint of a record that could not be read, when that was last noted, …}} | {'LOST'}
--         entry: head and text as in `passing.lua`; without them if somebody has trimmed it
--         place: held, backlog, or the milliseconds until it is due; what is claimed is due now
-- Flags   no-writes.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, unfinished, due, dead, dead_facts, places = KEYS[1], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local prefix, group, most = ARGV[2], ARGV[3], require_count(ARGV[4], 1, MAX_ITEMS)
local limits = {value = tonumber(ARGV[5]), bytes = tonumber(ARGV[6]), fields = tonumber(ARGV[7])}
require_types(stream, 'stream', KEYS[3], 'string', unfinished, 'hash', due, 'zset', dead, 'zset', dead_facts, 'hash', places, 'zset')
local known_places = call('EXISTS', places) == 1 and places
local now, count, bytes = now_ms(), 0, 0
local entries, records, letters, unreadable = {}, {}, {}, {}

local function is_full()
  return count >= most or bytes >= MAX_READ_BYTES
end

local function counts(text)
  count, bytes = count + 1, bytes + (text and #text or 0)
end

local barrier = call('GET', KEYS[3]) or ''
for _, flat in ipairs(call('EXISTS', stream) == 1 and call('XINFO', 'GROUPS', stream) or {}) do
  local found = by_name(flat)
  if found.name == group then
    barrier = found['last-delivered-id']
    for _, pending in ipairs(call('XPENDING', stream, group, '-', '+', whole(most))) do
      local id = pending[1]
      local entry = call('XRANGE', stream, id, id)[1]
      local head, text = '', ''
      if entry then
        head, text = packed(id, entry[2], known_places, limits)
      end
      local at = #entries
      entries[at + 1], entries[at + 2], entries[at + 3] = id, head, text
      counts(text)
      if is_full() then
        break
      end
    end
  end
end

local function add_record(id, field, place)
  local record = call('MGET', prefix .. 'delivery:' .. id)[1]
  -- A place without a record is nothing that could be handed over.
  if record then
    local at = #records
    records[at + 1], records[at + 2], records[at + 3], records[at + 4] = id, field, place, record
    counts(record)
  end
end

local function place_of(id, entry, backlog)
  local at = call('ZSCORE', due, id)
  if at then
    return whole(math.max(0, math.floor(tonumber(at)) - now))
  end
  return type(try('ZSCORE', backlog, pad(entry))) == 'string' and 'backlog' or '0'
end

-- The chain's head, then what is held behind it.
local function add_chain(endpoint, field, entry)
  if not is_entry(entry) then
    return
  end
  local id = entry .. ':' .. endpoint
  add_record(id, field, place_of(id, entry, prefix .. 'backlog:' .. endpoint))
  if sub(field, 1, 1) ~= '~' then
    local from, to = '[' .. field .. ' ', '(' .. field .. '!'
    local held = try('ZRANGEBYLEX', prefix .. 'held:' .. endpoint, from, to, 'LIMIT', 0, whole(most))
    for _, member in ipairs(held.err and {} or held) do
      if is_full() then
        return
      end
      add_record(unpad(sub(member, #field + 2)) .. ':' .. endpoint, field, 'held')
    end
  end
end

-- Calls it with each pair of a hash, until enough was found.
local function each_of(hash, see)
  local cursor = '0'
  repeat
    local page = try('HSCAN', hash, cursor, 'COUNT', 100)
    if page.err then
      return
    end
    for i = 1, #page[2], 2 do
      if is_full() then
        return
      end
      see(page[2][i], page[2][i + 1])
    end
    cursor = page[1]
  until cursor == '0'
end

each_of(unfinished, function(endpoint)
  -- A stranger's field names no endpoint.
  if find(endpoint, '^ep_[%w_-]*$') and #endpoint <= MAX_ID_BYTES then
    local noted = try('ZSCORE', prefix .. 'unreadable', endpoint)
    if type(noted) == 'string' and find(noted, '^%d+$') and #noted < 16 then
      unreadable[#unreadable + 1], unreadable[#unreadable + 2] = endpoint, noted
    end
    each_of(prefix .. 'heads:' .. endpoint, function(field, entry) add_chain(endpoint, field, entry) end)
  end
end)

if not is_full() then
  local found = call('ZRANGE', dead, 0, whole(most - count - 1), 'WITHSCORES')
  for i = 1, #found, 2 do
    if is_full() then
      break
    end
    local id = found[i]
    local letter, line = call('MGET', prefix .. 'dead-letter:' .. id)[1], call('HGET', dead_facts, id)
    local at = #letters
    letters[at + 1], letters[at + 2] = id, whole(tonumber(found[i + 1]))
    letters[at + 3], letters[at + 4] = line and match(line, '^%d+ (.*)$') or '', letter
    counts(letter)
  end
end
return {'EXPORTED', now, barrier, entries, records, letters, unreadable}
