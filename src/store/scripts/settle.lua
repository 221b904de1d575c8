#!lua flags=allow-oom
-- Makes a batch durable in one step: items, then acknowledgements, the attempt log, the cursor.
-- KEYS    1 stream  2 lease  3 cursor  4 due  5 claimed  6 unfinished  7 dead  8 quarantine  9 quarantine-index
--         10 inbox  11 attempts  12 registry-id  13 stats  14 places  15 bytes  16 mode  17 dead-facts
--         18 dead-kinds  19 dead-names
-- ARGV    1 term  2 prefix of this partition's keys  3 group  4 last entry read  5 length of the attempt log
--         6 number of acknowledgements  7 number of log lines, then the acknowledgements, then all the lines as one text
--         if there are any, each but the last with a line feed behind it, then the items, each a name and its arguments:
--         finish ID CHAIN | keep ID CHAIN PLACE RECORD | move ID CHAIN PLACE | bury ID CHAIN FACTS LETTER |
--         revive ID CHAIN RECORD | discard ID | index ID FACTS |
--         take ID CHAIN PLACE RECORD | take-letter ID AT FACTS LETTER | both leave as it is what is there already
--         take-unreadable ENDPOINT AT | a later time stays
--         quarantine ENTRY BODY CUT ERROR TRACEPARENT NUMBER KEEP | requeue ENTRY | discard-quarantined ENTRY |
--         bind REGISTRY | reply REQUEST ANSWER |
--         finish-all COUNT ENDPOINTS, as many times ENDPOINT COUNT, all IDs, all INTENTs, all entries padded: each counts as one
--         item, and none is a chain of its own
--         CHAIN: INTENT, or ~INTENT for a delivery that is a chain of its own
--         FACTS: ACCOUNT REASON CAUSE ATTEMPTS EVENT INTENT, and what it waited for if it was never tried
--         NUMBER: of the event among its account's, or empty
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
local unreadable = prefix .. 'unreadable'
local acks, lines = require_count(ARGV[6], 0, 1e6), require_count(ARGV[7], 0, 1e6)
local lines_at = 8 + acks
local first_item = lines_at + (lines > 0 and 1 or 0)

-- Acknowledgements and log lines first: with items there are few, and without items they are all there is. An
-- acknowledgement is an id that Redis gave out and Herald has parsed; checking each one again would cost more than
-- anything else here.
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

-- Returns the milliseconds until it is due if that is its place; nil and why for what is not a place.
local function due_in(place)
  if place == 'held' or place == 'backlog' or place == 'claimed' then
    return false
  elseif find(place, '^%d+$') and #place <= 15 then
    return tonumber(place)
  end
  return nil, 'the place ' .. sub(place, 1, 64) .. ' is not known'
end

-- Per endpoint of the items: its keys, the first item that named it, how many did, how many records it has parked,
-- whether it holds any, how many records it has more than before, and by how many bytes they have grown.
local endpoints = {}
local function endpoint_of(name, index)
  local found = endpoints[name]
  if not found then
    found = {name = name, first = index, uses = 0, heads = prefix .. 'heads:' .. name, held = prefix .. 'held:' .. name,
      backlog = prefix .. 'backlog:' .. name, parked = 0, holds = false, more = 0, grown = 0, intents_at = false,
      intents_to = false, found = false}
    endpoints[name], endpoints[#endpoints + 1] = found, found
  end
  found.uses = found.uses + 1
  return found
end

-- nil, or why its heads cannot be used. If only deliveries that end together need the heads, this reads them.
local function why_no_heads(of)
  if of.uses > 1 or not of.intents_at then
    return misfit(of.heads, 'hash')
  end
  of.found = try('HMGET', of.heads, unpack(ARGV, of.intents_at, of.intents_to))
  return of.found.err and misfit(of.heads, 'hash')
end

-- Whether any of these keys exists. Nearly always none does, and then one call has told it for all.
local function is_any_there(name)
  local keys = {}
  for i, of in ipairs(endpoints) do
    keys[i] = of[name]
  end
  return call('EXISTS', unpack(keys)) > 0
end

-- The first item, of those up to this one, whose endpoint's keys cannot be used, and why.
local function first_unusable(last)
  if #endpoints == 0 then
    return nil
  end
  local any_held, any_parked = is_any_there('held'), is_any_there('backlog')
  for _, of in ipairs(endpoints) do
    if of.first > last then
      return nil
    end
    local why = why_no_heads(of) or any_held and misfit(of.held, 'zset') or any_parked and misfit(of.backlog, 'zset')
      or why_unusable(claimed, 'zset') or why_unusable(unfinished, 'hash')
    if why then
      return of.first, why
    end
    of.holds = any_held and call('EXISTS', of.held) == 1
    of.parked = any_parked and call('ZCARD', of.backlog) or 0
  end
end

local of_record, byte, COLON = prefix .. 'delivery:', string.byte, 58

-- By key, whether there is a record, and its bytes, as the items so far leave it.
local is_there, length_of = {}, {}
local function check_record(key)
  if is_there[key] == nil then
    local length = try('STRLEN', key)
    if type(length) ~= 'number' then
      return misfit(key, 'string')
    end
    is_there[key], length_of[key] = length > 0 or call('EXISTS', key) == 1, length
  end
end

local function entry_and_endpoint(id)
  local entry, endpoint = match(id, '^(%d+%-%d+):([%w_-]+)$')
  if not entry or #entry > 20 and not is_entry(entry) then
    return nil, sub(id, 1, 200) .. ' is no delivery id'
  end
  return entry, endpoint
end

-- An item about a delivery of a chain. Made at once with all its fields: a table that grows is expensive.
local function of_chain(kind, index, id, chain, place, record, letter)
  local entry, endpoint = entry_and_endpoint(id)
  if not entry then
    return nil, endpoint
  end
  local intent = match(chain, '^~?([%w_-]+)$')
  if not intent then
    return nil, sub(chain, 1, 200) .. ' is no chain'
  end
  local ordered, key = intent == chain, of_record .. id
  local of, singles = endpoint_of(endpoint, index), not ordered and prefix .. 'singles:' .. endpoint
  local why = singles and why_unusable(singles, 'hash') or check_record(key)
  if why then
    return nil, why
  end
  local due_in_ms
  if place then
    due_in_ms, why = due_in(place)
    if why then
      return nil, why
    end
  end
  -- `head` is Chain::head_field.
  return {kind = kind, id = id, chain = chain, entry = entry, of = of, intent = intent, ordered = ordered,
    head = ordered and intent or '~' .. entry, singles = singles, record_key = key, place = place, due_in = due_in_ms,
    record = record, letter = letter, letter_key = false, dead_of = false, facts = false}
end

-- By key, whether one of a letter's sets is there, as the items so far leave it.
local is_set_there = {}
local function why_no_set(key)
  if is_set_there[key] == nil then
    local found = call('TYPE', key).ok
    if found ~= 'zset' and found ~= 'none' then
      return 'the key ' .. key .. ' is a ' .. found .. ', not a zset'
    end
    is_set_there[key] = found == 'zset'
  end
end

local function check_dead(item, endpoint)
  item.letter_key, item.dead_of = prefix .. 'dead-letter:' .. item.id, prefix .. 'dead:' .. endpoint
  return why_unusable(dead, 'zset') or why_unusable(item.dead_of, 'zset') or why_unusable(item.letter_key, 'string')
    or why_unusable(dead_facts, 'hash') or why_unusable(dead_kinds, 'zset') or why_unusable(dead_names, 'zset')
end

-- Reads the facts of an item, or says why it cannot.
local function check_facts(item, endpoint, facts)
  item.facts = dead_facts_of(facts, endpoint)
  if not item.facts then
    return sub(facts, 1, 200) .. ' are no facts of a letter'
  end
  local of, account, by = dead_sets(prefix, item.facts)
  return why_no_set(of) or why_no_set(account) or why_no_set(by)
end

local function of_letter(kind, index, id, chain, record, letter, facts)
  local item, why = of_chain(kind, index, id, chain, record and 'held', record, letter)
  why = not item and why or check_dead(item, item.of.name) or facts and check_facts(item, item.of.name, facts)
  return not why and item or nil, why
end

local function of_quarantined(item)
  if not is_entry(item.entry) then
    return nil, sub(item.entry, 1, 64) .. ' is no entry id'
  end
  local why = why_unusable(quarantine, 'stream') or why_unusable(quarantine_index, 'hash') or why_unusable(places, 'zset')
  return not why and item or nil, why
end

-- Redis hands out no id after the greatest one.
local function check_room(key)
  if call('EXISTS', key) == 1 then
    local last = by_name(call('XINFO', 'STREAM', key))['last-generated-id']
    return not after(last) and 'the stream ' .. key .. ' has no id left'
  end
end

-- By name: how many arguments an item takes, and what makes it of its index and of these, or says why it cannot.
local KINDS = {
  finish = {2, function(index, id, chain) return of_chain('finish', index, id, chain) end},
  keep = {4, function(index, id, chain, place, record) return of_chain('keep', index, id, chain, place, record) end},
  move = {3, function(index, id, chain, place) return of_chain('move', index, id, chain, place) end},
  bury = {4, function(index, id, chain, facts, letter)
    return of_letter('bury', index, id, chain, nil, letter, facts)
  end},
  revive = {3, function(index, id, chain, record) return of_letter('revive', index, id, chain, record) end},
  discard = {1, function(_, id)
    local entry, endpoint = entry_and_endpoint(id)
    local item = {kind = 'discard', id = id}
    local why = not entry and endpoint or check_dead(item, endpoint)
    return not why and item or nil, why
  end},
  index = {2, function(_, id, facts)
    local entry, endpoint = entry_and_endpoint(id)
    local item = {kind = 'index', id = id, facts = false}
    local why = not entry and endpoint or check_dead(item, endpoint) or check_facts(item, endpoint, facts)
    return not why and item or nil, why
  end},
  take = {4, function(index, id, chain, place, record) return of_chain('take', index, id, chain, place, record) end},
  ['take-letter'] = {4, function(_, id, at, facts, letter)
    local entry, endpoint = entry_and_endpoint(id)
    local item = {kind = 'take-letter', id = id, at = at, facts = false, letter = letter}
    local why = not entry and endpoint or check_dead(item, endpoint) or check_facts(item, endpoint, facts)
      or not find(at, '^%d+$') and sub(at, 1, 64) .. ' is no time'
    return not why and item or nil, why
  end},
  ['take-unreadable'] = {2, function(_, endpoint, at)
    local why = not find(endpoint, '^[%w_-]+$') and sub(endpoint, 1, 64) .. ' is no endpoint'
      or not find(at, '^%d+$') and sub(at, 1, 64) .. ' is no time' or why_unusable(unreadable, 'zset')
    return not why and {kind = 'take-unreadable', endpoint = endpoint, at = at} or nil, why
  end},
  quarantine = {7, function(_, entry, body, cut, error, traceparent, number, keep)
    local item, why = of_quarantined({kind = 'quarantine', entry = entry, body = body, cut = cut, error = error,
      traceparent = traceparent, number = number, keep = keep})
    if item and keep ~= 'always' and not find(keep, '^%d+$') then
      why = sub(keep, 1, 64) .. ' is not a number of bytes'
    end
    why = why or check_room(quarantine)
    return not why and item or nil, why
  end},
  requeue = {1, function(_, entry)
    local item, why = of_quarantined({kind = 'requeue', entry = entry})
    why = why or check_room(stream)
    return not why and item or nil, why
  end},
  ['discard-quarantined'] = {1, function(_, entry)
    return of_quarantined({kind = 'discard-quarantined', entry = entry})
  end},
  bind = {1, function(_, registry)
    local why = why_unusable(registry_id, 'string')
    return not why and {kind = 'bind', registry = registry} or nil, why
  end},
  reply = {2, function(_, request, answer)
    if not is_entry(request) then
      return nil, sub(request, 1, 64) .. ' is no entry id'
    end
    local why = why_unusable(inbox, 'stream') or why_unusable(prefix .. 'answer:' .. request, 'list')
    return not why and {kind = 'reply', request = request, answer = answer} or nil, why
  end},
}

local items, counted, arguments = {}, 0, ARGV

-- Deliveries that end together. A separate item for each would cost more than all that Redis does for it, so everything
-- is done with ranges of the arguments. Returns the item and where its arguments end; or nil, which of the deliveries
-- is bad, and why.
local function of_run(index, at)
  local count, groups = tonumber(arguments[at + 1]), tonumber(arguments[at + 2])
  local before = count and groups and at + 2 + 2 * groups
  if not before or before + 3 * count > #arguments then
    return nil, 0, 'finish-all has fewer arguments than announced'
  end
  if count > MAX_ITEMS or groups > count then
    return nil, 0, 'a batch holds at most ' .. MAX_ITEMS .. ', and an endpoint at least one'
  end
  local run = {kind = 'finish-all', count = count, ids = before, intents = before + count, padded = before + 2 * count, keys = {}}
  local nth = 0
  for group = 1, groups do
    local name, few = arguments[at + 1 + 2 * group], tonumber(arguments[at + 2 + 2 * group])
    if not find(name, '^[%w_-]+$') or not few or few < 1 or nth + few > count then
      return nil, nth, sub(name, 1, 64) .. ' is no endpoint with a count of its deliveries'
    end
    local of = endpoint_of(name, index + nth)
    of.intents_at, of.intents_to = run.intents + nth + 1, run.intents + nth + few
    for i = nth + 1, nth + few do
      local id = arguments[before + i]
      local key = of_record .. id
      local why = not find(id, '^%d+%-%d+:') and sub(id, 1, 200) .. ' is no delivery id' or check_record(key)
      if why then
        return nil, i - 1, why
      end
      run.keys[i] = key
    end
    run[group] = {of = of, from = nth + 1, to = nth + few}
    nth = nth + few
  end
  if nth ~= count then
    return nil, nth, 'finish-all counts ' .. count .. ' and holds ' .. nth
  end
  return run, before + 3 * count
end

-- nil, or the answer that names the first item that cannot be understood.
local function read_items()
  local at, last = first_item, #arguments
  while at <= last do
    local name, kind, item, why, ends_at, nth = arguments[at], KINDS[arguments[at]], nil, nil, nil, 0
    if name == 'finish-all' then
      item, ends_at, why = of_run(counted, at)
      nth = item and 0 or ends_at
    elseif not kind or at + kind[1] > last then
      why = sub(name, 1, 64) .. ' is no item with its arguments'
    else
      item, why = kind[2](counted, unpack(arguments, at + 1, at + kind[1]))
      ends_at = at + kind[1]
    end
    if not item then
      return {'BAD', counted + nth, why}
    end
    items[#items + 1], counted, at = item, counted + (item.count or 1), ends_at + 1
    if acks + lines + counted > MAX_ITEMS then
      return {'BAD', 0, 'a batch holds at most ' .. MAX_ITEMS}
    end
  end
end

local bad = read_items()
local first, why_first = first_unusable(bad and bad[2] or counted)
if first then
  return {'BAD', first, why_first}
elseif bad then
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

-- It stands in one place only. Most are claimed, and where millions are due, looking for one in vain is expensive.
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

-- An existing record changes its place if it is its chain's head; what is held stays held.
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
  local key, of = item.record_key, item.of
  if not is_there[key] then
    return
  end
  of.grown, of.more = of.grown - length_of[key], of.more - 1
  is_there[key], length_of[key] = false, 0
  call('DEL', key)
  lift(item)
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

-- If an endpoint holds any, something may wait behind each of these: they go one by one.
local function finish_apart(run, each)
  for i = each.from, each.to do
    local id, intent = arguments[run.ids + i], arguments[run.intents + i]
    finish({id = id, chain = intent, entry = match(id, '^(%d+%-%d+):'), of = each.of, intent = intent, ordered = true,
      head = intent, record_key = run.keys[i]})
  end
end

-- Each stands in one place only; most are claimed, and where millions are due, looking for one in vain is expensive.
-- Heads go first and records last: if only a part of this were applied, some deliveries would be sent again, but no
-- chain would wait for a head that is gone.
local function finish_run(run)
  local keys, ids, n = {}, {}, 0
  for _, each in ipairs(run) do
    local of = each.of
    if of.holds then
      finish_apart(run, each)
    else
      -- Each head is checked, because a stranger may have changed it: one that names another delivery stays.
      local heads = of.found or call('HMGET', of.heads, unpack(arguments, run.intents + each.from, run.intents + each.to))
      local own, padded, few = {}, {}, n
      for i = each.from, each.to do
        local key, id, head = run.keys[i], arguments[run.ids + i], heads[i - each.from + 1]
        if is_there[key] then
          n = n + 1
          keys[n], ids[n], padded[n - few] = key, id, arguments[run.padded + i]
          of.grown, of.more = of.grown - length_of[key], of.more - 1
          is_there[key], length_of[key] = false, 0
          if head and sub(id, 1, #head) == head and byte(id, #head + 1) == COLON then
            own[#own + 1] = arguments[run.intents + i]
          end
        end
      end
      if #own > 0 then
        call('HDEL', of.heads, unpack(own))
      end
      each.padded = padded
    end
  end
  if n == 0 then
    return
  end
  local left = n - call('ZREM', claimed, unpack(ids))
  for _, each in ipairs(run) do
    local of = each.of
    if left > 0 and of.parked > 0 and each.padded and #each.padded > 0 then
      local gone = call('ZREM', of.backlog, unpack(each.padded))
      of.parked, left = of.parked - gone, left - gone
    end
  end
  if left > 0 then
    call('ZREM', due, unpack(ids))
  end
  call('DEL', unpack(keys))
end

local function unindex(id)
  local facts = dead_line_of(call('HGET', dead_facts, id), match(id, ':(.*)$'))
  if facts then
    unindex_dead(prefix, id, facts)
    local of, account, by = dead_sets(prefix, facts)
    is_set_there[of], is_set_there[account], is_set_there[by] = nil, nil, nil
  end
end

-- Whatever it stood in before, it stands in the indexes of these facts and of this time now.
local function index(id, at, facts)
  local line = at .. ' ' .. facts.text
  if call('HSETNX', dead_facts, id, line) == 0 then
    unindex(id)
    call('HSET', dead_facts, id, line)
  end
  local of, account, by = dead_sets(prefix, facts)
  if not (is_set_there[of] and is_set_there[account] and is_set_there[by]) then
    local of_account, of_endpoint = dead_kinds_of(facts)
    call('ZADD', dead_kinds, 0, of_account, 0, of_endpoint, 0, 'b:' .. facts.account .. ':' .. facts.why, 0, 'w:' .. facts.why)
    is_set_there[of], is_set_there[account], is_set_there[by] = true, true, true
  end
  call('ZADD', of, at, id)
  call('ZADD', account, at, id)
  call('ZADD', by, at, id)
  local names = dead_names_of(facts, id)
  if #names == 2 then
    call('ZADD', dead_names, 0, names[1], 0, names[2])
  elseif names[1] then
    call('ZADD', dead_names, 0, names[1])
  end
end

local function forget_letter(item)
  unindex(item.id)
  call('ZREM', dead, item.id)
  call('ZREM', item.dead_of, item.id)
  return call('DEL', item.letter_key) == 1
end

-- Bounds how long one call holds Redis after a limit was lowered; the next call goes on. An entry of the log is a
-- batch.
local MAX_DROPS = 100
local MAX_LOG_TRIM = 400

-- How many quarantined entries with its id a new one is compared with: each is of another stream. Beyond, one may be
-- there twice.
local MAX_COMPARED = 16

-- What a quarantined entry takes of the limit: its texts, and roughly what Redis needs besides.
local function quarantined_bytes(found)
  return #(found.body or '') + #(found.error or '') + 256
end

-- Whether this very entry is there already, because a settle may come again. An entry with the same id and another body
-- is another event, and only this item still knows of it.
local function is_quarantined(item)
  for n, at in ipairs(namesakes(quarantine_index, item.entry)) do
    local found = n <= MAX_COMPARED and call('XRANGE', quarantine, at, at)[1]
    if found and by_name(found[2]).body == item.body then
      return true
    end
  end
  return false
end

-- A count in a hash. If a stranger wrote something else there, it begins anew.
local function add_to(key, name, by)
  local count = try('HINCRBY', key, name, whole(by))
  if type(count) ~= 'number' or count < 0 or count > 9e15 then
    count = math.max(0, by)
    call('HSET', key, name, whole(count))
  end
  return count
end

-- Returns how many bytes are left in the quarantine. Nothing in an entry is relied on: a stranger may have written it.
local function leave_quarantine(entry, at, found)
  call('XDEL', quarantine, at)
  index_quarantined(quarantine_index, entry, at)
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
      move_to_end(quarantine, quarantine_index, oldest)
    else
      bytes = leave_quarantine(found.entry or '', oldest[1], found)
      add_to(stats, 'quarantine-dropped', 1)
    end
  end
end

local APPLY = {
  finish = finish,
  ['finish-all'] = finish_run,
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
    index(item.id, now_text, item.facts)
    finish(item)
  end,
  revive = function(item)
    if forget_letter(item) and not is_there[item.record_key] then
      item.place = 'held'
      write_record(item)
    end
  end,
  discard = forget_letter,
  -- A letter that an older Herald wrote. Since it was found, it may have gone or died again.
  index = function(item)
    local at = call('ZSCORE', dead, item.id)
    if at then
      at = whole(tonumber(at))
      local known, of = dead_line_of(call('HGET', dead_facts, item.id), '')
      if not known or of ~= at then
        index(item.id, at, item.facts)
      end
    end
  end,
  -- From the stream that this one is a part of. It may have come before.
  take = function(item)
    if not is_there[item.record_key] then
      write_record(item)
    end
  end,
  ['take-letter'] = function(item)
    if call('EXISTS', item.letter_key) == 0 then
      call('SET', item.letter_key, item.letter)
      call('ZADD', dead, item.at, item.id)
      call('ZADD', item.dead_of, item.at, item.id)
      index(item.id, item.at, item.facts)
    end
  end,
  ['take-unreadable'] = function(item)
    call('ZADD', unreadable, 'GT', item.at, item.endpoint)
  end,
  -- The quarantine's ids are its own, because entries need not come in their order; the index finds them.
  quarantine = function(item)
    if not is_quarantined(item) then
      local at = call('XADD', quarantine, '*', 'entry', item.entry, 'body', item.body, 'cut', item.cut,
        'error', item.error, 'at', now_text, 'traceparent', item.traceparent, 'account-sequence', item.number,
        'place', place_in(places, item.entry) or item.entry, 'sound', item.keep == 'always' and '1' or '0')
      index_quarantined(quarantine_index, item.entry, nil, at)
      local bytes, keep = add_to(stats, 'quarantine-bytes', quarantined_bytes(item)), tonumber(item.keep)
      if keep then
        drop_oldest(bytes, keep)
      end
    end
  end,
  requeue = function(item)
    local at, found = quarantined(quarantine, quarantine_index, item.entry)
    if at and found.body and found.cut ~= '1' then
      local fields = {'event', found.body}
      for _, name in ipairs({'traceparent', 'account-sequence'}) do
        if found[name] and found[name] ~= '' then
          fields[#fields + 1], fields[#fields + 2] = name, found[name]
        end
      end
      local id = call('XADD', stream, '*', unpack(fields))
      -- A key that no producer may write to says whose place it has: nobody can choose a place for himself.
      -- An older stream may have given out the same id.
      call('ZREMRANGEBYLEX', places, '[' .. pad(id) .. ' ', '(' .. pad(id) .. '!')
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
  -- An answer that nobody fetches goes after 5 minutes: its sender has given up long before.
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

-- Longer than a name may be in a hash that Redis keeps as a list: with it the hash is a table, and stays one until it
-- is empty or Redis restarts. In a list of a hundred endpoints each look passes fifty of them. It is no endpoint's id,
-- so readers that find it skip it.
local NO_LIST = rep('.', 128)
local MANY_ENDPOINTS = 8

-- The counts of the batch's endpoints in one hash, each changed by what `by` names; a count that becomes zero, or is
-- zero by another count, is removed. All endpoints go together, because each command costs more than what it does here.
-- If a stranger wrote something else there, `recount` finds the count anew, or it begins anew.
local function changed(key, by, others, recount)
  local names, counts, set, gone, new = {}, {}, {}, {}, 0
  for i, of in ipairs(endpoints) do
    names[i] = of.name
  end
  for i, text in ipairs(call('HMGET', key, unpack(names))) do
    local change = endpoints[i][by]
    local known = text and find(text, '^%d+$') and tonumber(text)
    local count = (known or 0) + change
    new = new + (text and 0 or 1)
    if recount and text and not known then
      count = recount(endpoints[i])
    elseif count < 0 or count > 9e15 then
      count = math.max(0, change)
    end
    if count == 0 or others and others[i] == 0 then
      count = 0
      gone[#gone + 1] = text and names[i] or nil
    elseif change ~= 0 or not known then
      set[#set + 1], set[#set + 2] = names[i], whole(count)
    end
    counts[i] = count
  end
  if #set > 0 then
    call('HSET', key, unpack(set))
    if new > MANY_ENDPOINTS then
      call('HSET', key, NO_LIST, '0')
      call('HDEL', key, NO_LIST)
    end
  end
  if #gone > 0 then
    call('HDEL', key, unpack(gone))
  end
  return counts
end

if #endpoints > 0 and misfit(bytes_of, 'hash') then
  call('DEL', bytes_of)
end

if acks > 0 then
  call('XACK', stream, group, unpack(ARGV, 8, lines_at - 1))
end

-- The count was lost with its key, or a stranger wrote to the log: counting goes on after the last id that is there, so
-- lines from before a stranger's higher id count as old and go first. If no number is left that Lua counts exactly, the
-- log begins anew, and shows by an entry added and removed that it lost some: the settle does not fail because of it.
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

-- All lines of a batch are one entry, because an entry for each would cost more than all the rest of a settle. Its id
-- is the number of lines ever logged, its own included. So old entries can be removed by their ids alone: Redis cannot
-- hand a script part of an entry, and looking at a whole batch would cost as much as writing it.
local function log_lines()
  local total = try('HINCRBY', stats, 'log-lines', lines)
  local added = type(total) == 'number' and try('XADD', attempts, whole(total), 'lines', ARGV[lines_at])
  if type(added) ~= 'string' then
    total = count_anew()
    call('XADD', attempts, whole(total), 'lines', ARGV[lines_at])
  end
  local first = total - tonumber(log_length) + 1
  -- After its length was lowered, much has to go: some with each batch. What is left then is within one node.
  if first > 1 and call('XTRIM', attempts, 'MINID', '~', whole(first), 'LIMIT', MAX_LOG_TRIM) < MAX_LOG_TRIM / 2 then
    call('XTRIM', attempts, 'MINID', whole(first))
  end
end

if lines > 0 then
  log_lines()
end

-- Without the group nothing is known to be pending, and the cursor stays where it is. So it does where the stream is split: there it
-- says how far the parts are.
local summary = try('XPENDING', stream, group)
if not summary.err and call('EXISTS', KEYS[16]) == 0 then
  call('SET', KEYS[3], summary[2] and before(summary[2]) or last_read)
end

local answer = {'SETTLED', now, next_due(due), summary.err and 1 or 0}
if #endpoints > 0 then
  local records = changed(unfinished, 'more', nil, function(of) return records_of(prefix, of.name) end)
  -- Bytes are counted beside the records, but those of an older version's records were never added: so where no record
  -- is left, the bytes are removed too.
  local bytes = changed(bytes_of, 'grown', records)
  for i, of in ipairs(endpoints) do
    local at = #answer
    answer[at + 1], answer[at + 2], answer[at + 3], answer[at + 4] = of.name, records[i], of.parked, bytes[i]
  end
end
return answer
