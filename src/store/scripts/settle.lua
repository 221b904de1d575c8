#!lua flags=allow-oom
-- Makes a batch durable in one step: items, then acknowledgements, the attempt log, the cursor.
-- KEYS    1 stream  2 lease  3 cursor  4 due  5 claimed  6 unfinished  7 dead  8 quarantine  9 quarantine-index
--         10 inbox  11 attempts  12 registry-id  13 stats  14 places  15 bytes
-- ARGV    1 term  2 prefix of this partition's keys  3 group  4 last entry read  5 length of the attempt log
--         6 number of acknowledgements  7 number of log lines, then the acknowledgements, then all the lines as one text
--         if there are any, each but the last with a line feed behind it, then the items, each a name and its arguments:
--         finish ID CHAIN | keep ID CHAIN PLACE RECORD | move ID CHAIN PLACE | bury ID CHAIN LETTER |
--         revive ID CHAIN RECORD | discard ID | quarantine ENTRY BODY CUT ERROR TRACEPARENT KEEP | requeue ENTRY |
--         discard-quarantined ENTRY | bind REGISTRY | reply REQUEST ANSWER
--         CHAIN: INTENT, or ~INTENT for a delivery that is a chain of its own
--         KEEP: bytes that the quarantine may hold; `always` for a sound event, which no limit drops
--         PLACE: held, backlog, claimed, or the milliseconds until it is due
-- Answer  {'SETTLED', now ms, next due ms or false, group missing 0 or 1, endpoint, records, parked, bytes, endpoint, …} |
--         {'BAD', index of the item from 0, why}, nothing was changed | {'LOST'}
-- Flags   allow-oom: what is delivered frees memory, and what a full Redis refused to keep would be lost.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, due, claimed, unfinished, dead = KEYS[1], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local quarantine, quarantine_index, inbox, attempts, registry_id = KEYS[8], KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local stats, places, bytes_of = KEYS[13], KEYS[14], KEYS[15]
local prefix, group, last_read, log_length = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local acks, lines = require_count(ARGV[6], 0, 1e6), require_count(ARGV[7], 0, 1e6)
local lines_at = 8 + acks
local first_item = lines_at + (lines > 0 and 1 or 0)

-- Acknowledgements and log lines first: with items there are few, and without items this is all. An acknowledgement is
-- an id that Redis gave out and Herald has parsed; looking at each once more would cost more than anything else here.
if first_item - 1 > #ARGV then
  error({err = 'ERR fewer arguments than announced; nothing was changed'})
elseif acks + lines > MAX_ITEMS then
  return {'BAD', 0, 'a batch holds at most ' .. MAX_ITEMS}
elseif not is_entry(last_read) or not find(log_length, '^%d+$') then
  error({err = 'ERR the last entry read or the length of the log is malformed; nothing was changed'})
end
require_types(stream, 'stream', KEYS[3], 'string', due, 'zset', attempts, 'stream', stats, 'hash')

-- Part 1: every item is understood and every key it needs is usable, before anything is written.

local known = {}
local function why_unusable(key, want)
  if known[key] == nil then
    known[key] = misfit(key, want) or false
  end
  return known[key]
end

local function check_place(item)
  local place = item.place
  if place == 'held' or place == 'backlog' or place == 'claimed' then
    return
  elseif not find(place, '^%d+$') or #place > 15 then
    return 'the place ' .. sub(place, 1, 64) .. ' is not known'
  end
  item.due_in = tonumber(place)
end

local function check_delivery(item)
  local entry, endpoint = match(item.id, '^(%d+%-%d+):([%w_-]+)$')
  if not entry or not is_entry(entry) then
    return sub(item.id, 1, 200) .. ' is no delivery id'
  end
  item.entry, item.endpoint = entry, endpoint
end

-- Per endpoint of the items: its keys, why they can not be used, what it has parked, and how many records more than
-- before, and by how many bytes they have grown.
local endpoints = {}
local function endpoint_of(name)
  local found = endpoints[name]
  if not found then
    local heads, held, backlog = prefix .. 'heads:' .. name, prefix .. 'held:' .. name, prefix .. 'backlog:' .. name
    local is_held, parked = call('EXISTS', held), redis.pcall('ZCARD', backlog)
    found = {name = name, heads = heads, held = held, backlog = backlog, parked = parked, more = 0, grown = 0}
    found.why = misfit(heads, 'hash') or is_held == 1 and misfit(held, 'zset')
      or type(parked) ~= 'number' and misfit(backlog, 'zset')
      or why_unusable(claimed, 'zset') or why_unusable(unfinished, 'hash') or nil
    found.holds = is_held == 1
    endpoints[name], endpoints[#endpoints + 1] = found, found
  end
  return found
end

-- By key, whether there is a record, and its bytes, as the items so far leave it.
local is_there, length_of = {}, {}
local function check_record(item)
  local key = prefix .. 'delivery:' .. item.id
  item.record_key = key
  if is_there[key] == nil then
    local length = redis.pcall('STRLEN', key)
    if type(length) ~= 'number' then
      return misfit(key, 'string')
    end
    is_there[key], length_of[key] = length > 0 or call('EXISTS', key) == 1, length
  end
end

local function check_chain(item)
  local intent = match(item.chain, '^~?([%w_-]+)$')
  if not intent then
    return sub(item.chain, 1, 200) .. ' is no chain'
  end
  item.of, item.intent, item.ordered = endpoint_of(item.endpoint), intent, intent == item.chain
  -- Chain::head_field.
  item.head = item.ordered and intent or '~' .. item.entry
  item.singles = not item.ordered and prefix .. 'singles:' .. item.endpoint
  return item.of.why or item.singles and why_unusable(item.singles, 'hash') or check_record(item)
end

local function check_dead(item)
  item.letter_key, item.dead_of = prefix .. 'dead-letter:' .. item.id, prefix .. 'dead:' .. item.endpoint
  return why_unusable(dead, 'zset') or why_unusable(item.dead_of, 'zset') or why_unusable(item.letter_key, 'string')
end

local function check_quarantined(item)
  if not is_entry(item.entry) then
    return sub(item.entry, 1, 64) .. ' is no entry id'
  end
  return why_unusable(quarantine, 'stream') or why_unusable(quarantine_index, 'hash') or why_unusable(places, 'zset')
end

-- Redis hands out no id after the greatest one.
local function check_room(key)
  if call('EXISTS', key) == 1 then
    local last = by_name(call('XINFO', 'STREAM', key))['last-generated-id']
    return not after(last) and 'the stream ' .. key .. ' has no id left'
  end
end

-- Per name: its arguments, and what to check of them.
local KINDS = {
  finish = {{'id', 'chain'}, check_delivery, check_chain},
  keep = {{'id', 'chain', 'place', 'record'}, check_delivery, check_chain, check_place},
  move = {{'id', 'chain', 'place'}, check_delivery, check_chain, check_place},
  bury = {{'id', 'chain', 'letter'}, check_delivery, check_chain, check_dead},
  revive = {{'id', 'chain', 'record'}, check_delivery, check_chain, check_dead},
  discard = {{'id'}, check_delivery, check_dead},
  quarantine = {{'entry', 'body', 'cut', 'error', 'traceparent', 'keep'}, check_quarantined, function(item)
    if item.keep ~= 'always' and not find(item.keep, '^%d+$') then
      return sub(item.keep, 1, 64) .. ' is no number of bytes'
    end
    return check_room(quarantine)
  end},
  requeue = {{'entry'}, check_quarantined, function() return check_room(stream) end},
  ['discard-quarantined'] = {{'entry'}, check_quarantined},
  bind = {{'registry'}, function() return why_unusable(registry_id, 'string') end},
  reply = {{'request', 'answer'}, function(item)
    if not is_entry(item.request) then
      return sub(item.request, 1, 64) .. ' is no entry id'
    end
    return why_unusable(inbox, 'stream') or why_unusable(prefix .. 'answer:' .. item.request, 'list')
  end},
}

local items = {}

-- nil, or the answer that names the item that can not be applied.
local function read_items()
  local at = first_item
  while at <= #ARGV do
    local kind, index = KINDS[ARGV[at]], #items
    if acks + lines + index >= MAX_ITEMS then
      return {'BAD', 0, 'a batch holds at most ' .. MAX_ITEMS}
    elseif not kind or at + #kind[1] > #ARGV then
      return {'BAD', index, sub(ARGV[at], 1, 64) .. ' is no item with its arguments'}
    end
    local item = {kind = ARGV[at]}
    for i, name in ipairs(kind[1]) do
      item[name] = ARGV[at + i]
    end
    for i = 2, #kind do
      local why = kind[i](item)
      if why then
        return {'BAD', index, why}
      end
    end
    items[index + 1] = item
    at = at + 1 + #kind[1]
  end
end

local bad = read_items()
if bad then
  return bad
end

-- Part 2: nothing from here on can fail.

local now = now_ms()
local now_text = whole(now)

local function put(item)
  if item.place == 'claimed' then
    call('ZADD', claimed, now_text, item.id)
  elseif item.place == 'backlog' then
    item.of.parked = item.of.parked + call('ZADD', item.of.backlog, 0, pad(item.entry))
  else
    call('ZADD', due, whole(now + (item.due_in or 0)), item.id)
  end
end

-- It stands at one place only. Most are claimed, and where millions are due a look for one in vain is dear.
local function lift(item)
  if call('ZREM', claimed, item.id) == 1 then
    return
  end
  local of = item.of
  local was_parked = of.parked > 0 and call('ZREM', of.backlog, pad(item.entry)) or 0
  of.parked = of.parked - was_parked
  if was_parked == 0 then
    call('ZREM', due, item.id)
  end
end

-- The member of `held`. A blank is in no id and sorts before all of their characters, so the range of one intent never
-- reaches into that of a longer one.
local function held_member(item)
  return item.intent .. ' ' .. pad(item.entry)
end

-- A new record joins its chain. One that is to be held but has nothing before it is due at once.
local function begin(item)
  local of = item.of
  of.more = of.more + 1
  if item.singles then
    call('HINCRBY', item.singles, item.chain, 1)
  end
  if call('HSETNX', of.heads, item.head, item.entry) == 0 then
    call('ZADD', of.held, 0, held_member(item))
    of.holds = true
  else
    put(item)
  end
end

-- A record that is there changes its place if it is its chain's head: what is held stays held.
local function place(item)
  if item.place ~= 'held' and call('HGET', item.of.heads, item.head) == item.entry then
    lift(item)
    put(item)
  end
end

local function write_record(item)
  local key, of = item.record_key, item.of
  call('SET', key, item.record)
  of.grown = of.grown + #item.record - length_of[key]
  length_of[key] = #item.record
  if is_there[key] then
    place(item)
  else
    is_there[key] = true
    begin(item)
  end
end

local function finish(item)
  if not is_there[item.record_key] then
    return
  end
  call('DEL', item.record_key)
  item.of.grown = item.of.grown - length_of[item.record_key]
  is_there[item.record_key], length_of[item.record_key] = false, 0
  lift(item)
  local of = item.of
  of.more = of.more - 1
  if item.singles and call('HINCRBY', item.singles, item.chain, -1) <= 0 then
    call('HDEL', item.singles, item.chain)
  end
  if call('HGET', of.heads, item.head) ~= item.entry then
    call('ZREM', of.held, held_member(item))
    return
  end
  local next_member = item.ordered and of.holds
    and call('ZRANGEBYLEX', of.held, '[' .. item.intent .. ' ', '(' .. item.intent .. '!', 'LIMIT', 0, 1)[1]
  if not next_member then
    call('HDEL', of.heads, item.head)
    return
  end
  local entry = unpad(sub(next_member, #item.intent + 2))
  call('ZREM', of.held, next_member)
  call('HSET', of.heads, item.head, entry)
  call('ZADD', due, now_text, entry .. ':' .. of.name)
end

local function forget_letter(item)
  call('ZREM', dead, item.id)
  call('ZREM', item.dead_of, item.id)
  return call('DEL', item.letter_key) == 1
end

-- Bounds how long one call holds Redis after a limit was lowered; the next one goes on. An entry of the log is a batch.
local MAX_DROPS = 100
local MAX_LOG_TRIM = 400

-- Quarantined entries of one id that a new one is compared with: each is of another stream. Beyond, one may be there twice.
local MAX_COMPARED = 16

-- What a quarantined entry takes of the limit: its texts, and about what Redis needs besides.
local function quarantined_bytes(found)
  return #(found.body or '') + #(found.error or '') + 256
end

-- What was written down of an entry's id: where those that have it stand now.
local function index_quarantined(entry, all)
  if #all == 0 then
    call('HDEL', quarantine_index, entry)
  else
    call('HSET', quarantine_index, entry, table.concat(all, ' '))
  end
end

local function unindexed(entry, gone)
  local all = {}
  for _, at in ipairs(namesakes(quarantine_index, entry)) do
    if at ~= gone then
      all[#all + 1] = at
    end
  end
  return all
end

-- Whether this very entry is there already: a settle may come again. Another one with the same id is another event, and the
-- only one that still knows of it is this item.
local function is_quarantined(item)
  for n, at in ipairs(namesakes(quarantine_index, item.entry)) do
    local found = n <= MAX_COMPARED and call('XRANGE', quarantine, at, at)[1]
    if found and by_name(found[2]).body == item.body then
      return true
    end
  end
  return false
end

-- A count in a hash. Whatever a stranger wrote there is begun anew.
local function add_to(key, name, by)
  local count = redis.pcall('HINCRBY', key, name, whole(by))
  if type(count) ~= 'number' or count < 0 or count > 9e15 then
    count = math.max(0, by)
    call('HSET', key, name, whole(count))
  end
  return count
end

-- Answers how many bytes are left in the quarantine. Nothing of an entry is relied on: a stranger may have written it.
local function leave_quarantine(entry, at, found)
  call('XDEL', quarantine, at)
  index_quarantined(entry, unindexed(entry, at))
  if call('XLEN', quarantine) == 0 then
    call('HDEL', stats, 'quarantine-bytes')
    return 0
  end
  return add_to(stats, 'quarantine-bytes', -quarantined_bytes(found))
end

local function drop_oldest(bytes, keep)
  for _ = 1, MAX_DROPS do
    if bytes <= keep or call('XLEN', quarantine) <= 1 then
      return
    end
    local oldest = call('XRANGE', quarantine, '-', '+', 'COUNT', 1)[1]
    local found = by_name(oldest[2])
    if found.sound == '1' then
      -- Out of the way of those behind it.
      local entry = found.entry or ''
      local all = unindexed(entry, oldest[1])
      all[#all + 1] = call('XADD', quarantine, '*', unpack(oldest[2]))
      index_quarantined(entry, all)
      call('XDEL', quarantine, oldest[1])
    else
      bytes = leave_quarantine(found.entry or '', oldest[1], found)
      add_to(stats, 'quarantine-dropped', 1)
    end
  end
end

local APPLY = {
  finish = finish,
  keep = write_record,
  move = function(item)
    if is_there[item.record_key] then
      place(item)
    end
  end,
  bury = function(item)
    call('SET', item.letter_key, item.letter)
    call('ZADD', dead, now_text, item.id)
    call('ZADD', item.dead_of, now_text, item.id)
    finish(item)
  end,
  revive = function(item)
    if forget_letter(item) and not is_there[item.record_key] then
      item.place = 'held'
      write_record(item)
    end
  end,
  discard = forget_letter,
  -- The quarantine's ids are its own, because entries need not come in their order; the index finds them.
  quarantine = function(item)
    if not is_quarantined(item) then
      local at = call('XADD', quarantine, '*', 'entry', item.entry, 'body', item.body, 'cut', item.cut,
        'error', item.error, 'at', now_text, 'traceparent', item.traceparent,
        'place', place_in(places, item.entry) or item.entry, 'sound', item.keep == 'always' and '1' or '0')
      local all = namesakes(quarantine_index, item.entry)
      all[#all + 1] = at
      index_quarantined(item.entry, all)
      local bytes, keep = add_to(stats, 'quarantine-bytes', quarantined_bytes(item)), tonumber(item.keep)
      if keep then
        drop_oldest(bytes, keep)
      end
    end
  end,
  requeue = function(item)
    local at, found = quarantined(quarantine, quarantine_index, item.entry)
    if at and found.body and found.cut ~= '1' then
      local id
      if found.traceparent and found.traceparent ~= '' then
        id = call('XADD', stream, '*', 'event', found.body, 'traceparent', found.traceparent)
      else
        id = call('XADD', stream, '*', 'event', found.body)
      end
      -- A key that no producer may write to says whose place it has: nobody can take a place of his own choice.
      call('ZADD', places, 0, pad(id) .. ' ' .. pad(is_entry(found.place or '') and found.place or item.entry))
      leave_quarantine(item.entry, at, found)
    end
  end,
  ['discard-quarantined'] = function(item)
    local at, found = quarantined(quarantine, quarantine_index, item.entry)
    if at then
      leave_quarantine(item.entry, at, found)
    end
  end,
  bind = function(item)
    call('SET', registry_id, item.registry)
  end,
  -- An answer that nobody fetches within 5 minutes goes: its sender has given up long before.
  reply = function(item)
    if call('XDEL', inbox, item.request) == 1 then
      local answer = prefix .. 'answer:' .. item.request
      call('RPUSH', answer, item.answer)
      call('EXPIRE', answer, 300)
    end
  end,
}

for _, item in ipairs(items) do
  APPLY[item.kind](item)
end

-- The bytes of an endpoint's records, now that the batch has changed them. They are a count beside the records: those of an
-- older version were not in it, so where nothing is left nothing is counted, and what a stranger put in its place goes.
local function bytes_left(of, records)
  if records <= 0 then
    call('HDEL', bytes_of, of.name)
    return 0
  end
  return add_to(bytes_of, of.name, of.grown)
end

if #endpoints > 0 and misfit(bytes_of, 'hash') then
  call('DEL', bytes_of)
end

if acks > 0 then
  call('XACK', stream, group, unpack(ARGV, 8, lines_at - 1))
end

-- The count was lost with its key, or a stranger wrote to the log: it goes on behind the last id that is there, so lines
-- from before a stranger's higher id count as old and go first. Where no number is left that Lua counts exactly, the log
-- begins anew, and shows by an entry added and gone that it lost some: what was settled does not fail for it.
local function count_anew()
  local known = call('EXISTS', attempts) == 1 and by_name(call('XINFO', 'STREAM', attempts))['last-generated-id'] or '0'
  local last = tonumber(match(known, '^%d+'))
  if last > 9e15 then
    call('DEL', attempts)
    call('XADD', attempts, '0-1', 'lines', '')
    call('XDEL', attempts, '0-1')
    last = 0
  end
  call('HSET', stats, 'log-lines', whole(last + lines))
  return last + lines
end

-- All lines of a batch are one entry, as an entry for each would cost more than all the rest of a settle. Its id is the
-- number of lines that were ever logged, itself included. So what lies too far back goes by its id alone: Redis hands a
-- script no part of an entry, and to look at a whole batch would cost as much as to write it.
local function log_lines()
  local total = redis.pcall('HINCRBY', stats, 'log-lines', lines)
  local added = type(total) == 'number' and redis.pcall('XADD', attempts, whole(total), 'lines', ARGV[lines_at])
  if type(added) ~= 'string' then
    total = count_anew()
    call('XADD', attempts, whole(total), 'lines', ARGV[lines_at])
  end
  local first = total - tonumber(log_length) + 1
  -- After its length was lowered much has to go: some with each batch. What is left then is within one node.
  if first > 1 and call('XTRIM', attempts, 'MINID', '~', whole(first), 'LIMIT', MAX_LOG_TRIM) < MAX_LOG_TRIM / 2 then
    call('XTRIM', attempts, 'MINID', whole(first))
  end
end

if lines > 0 then
  log_lines()
end

-- Without the group nothing is known to be pending, and the cursor stays where it is.
local summary = redis.pcall('XPENDING', stream, group)
if not summary.err then
  call('SET', KEYS[3], summary[2] and before(summary[2]) or last_read)
end

local answer = {'SETTLED', now, next_due(due), summary.err and 1 or 0}
for _, of in ipairs(endpoints) do
  local count = call('HINCRBY', unfinished, of.name, of.more)
  if count <= 0 then
    call('HDEL', unfinished, of.name)
  end
  local at = #answer
  answer[at + 1], answer[at + 2], answer[at + 3] = of.name, math.max(0, count), of.parked
  answer[at + 4] = bytes_left(of, count)
end
return answer
