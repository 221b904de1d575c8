#!lua flags=allow-oom
-- Says how an operation stands, and books what became of some that it has under way: a request was answered, a delivery was
-- delivered or given up again.
-- KEYS    1 lease  2 operation:ID  3 operation-claims  4 inbox  5 dead  6 dead-facts  7 due  8 claimed  9 stream
--         10 quarantine-index
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 redeliver, discard, send-now, replay, or replay-gone after its endpoint
--         was deleted  5 after how many ms a granted request that changed nothing counts as refused  6 what it waits for as JSON  7 the answer for a letter that is not there
--         8 the answer for one that it has taken before  9 group, then the deliveries
-- Answer  {'BOOKED', state, rate, laid or false, open, for each delivery a word}: `asked`, `open`, `held`, `retrying`, `parked`, or how it
--         ended: `done`, `refused`, `dead_again`, `overtaken`, `repeated`; `stranger` for what is not its own | {'MISSING'} |
--         {'LOST'}
-- Flags   allow-oom: what has ended must be told, and exceptions are bounded.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, claims, inbox, dead, dead_facts, due, claimed = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local stream, quarantine_index = KEYS[9], KEYS[10]
local prefix, id, kind, patience = ARGV[2], ARGV[3], ARGV[4], require_count(ARGV[5], 0, 1e9)
local waits, not_there, taken_before, group = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
require_types(key, 'hash', claims, 'hash', inbox, 'stream', dead, 'zset', dead_facts, 'hash', due, 'zset', claimed, 'zset',
  prefix .. 'operation-results:' .. id, 'stream', stream, 'stream', quarantine_index, 'hash')
if call('EXISTS', key) == 0 then
  -- Somebody took it away. What it had under way is anybody's again.
  for at = 10, #ARGV do
    if match(call('HGET', claims, ARGV[at]) or '', '^[%w_-]+') == id then
      call('HDEL', claims, ARGV[at])
    end
  end
  return {'MISSING'}
end
if call('HGET', key, 'waits') ~= waits then
  call('HSET', key, 'waits', waits)
end
local now = now_ms()

-- The answer to a request; `false` if it came and has gone, or was never given; nil while the request waits.
local function answer_to(request)
  if call('XRANGE', inbox, request, request, 'COUNT', 1)[1] then
    return nil
  end
  local answer = try('LPOP', prefix .. 'answer:' .. request)
  return type(answer) == 'string' and answer
end

local function where(delivery)
  local due_at = tonumber(call('ZSCORE', due, delivery) or 0)
  if due_at > now then
    return 'retrying'
  elseif due_at > 0 or call('ZSCORE', claimed, delivery) then
    return 'open'
  end
  local entry, endpoint = match(delivery, '^(%d+%-%d+):(.+)$')
  local is_parked = entry and type(try('ZSCORE', prefix .. 'backlog:' .. endpoint, pad(entry))) == 'string'
  return is_parked and 'parked' or 'held'
end

-- What became of one that was made due. One that was tried is due again later, or has ended.
local function sent(delivery, since)
  if call('EXISTS', prefix .. 'delivery:' .. delivery) == 0 then
    return 'done'
  end
  local place = where(delivery)
  if place == 'parked' then
    return now - since > patience and 'refused' or place, 'its endpoint takes nothing at the moment: it waits in the backlog'
  end
  return place == 'retrying' and 'done' or place
end

local function why_dead(delivery)
  local reason, cause = match(call('HGET', dead_facts, delivery) or '', '^%d+ [%w_-]* ([%l_]+) ([%l%d_:]+) ')
  return (reason or '') .. ' ' .. (cause or '')
end

-- The last entry that the group has read, padded; false without the group. Asked once in a call.
local read_up_to
local function is_read(entry)
  if read_up_to == nil then
    read_up_to = false
    local groups = try('XINFO', 'GROUPS', stream)
    for _, flat in ipairs(groups.err and {} or groups) do
      local found = by_name(flat)
      read_up_to = found.name == group and pad(found['last-delivered-id']) or read_up_to
    end
  end
  return read_up_to and pad(entry) <= read_up_to
end

-- What became of one that was added to the stream again. What is read stays pending until it has a record or has ended.
local function replayed(delivery)
  if call('EXISTS', prefix .. 'delivery:' .. delivery) == 1 then
    return where(delivery)
  elseif call('ZSCORE', dead, delivery) then
    return 'dead_again', why_dead(delivery)
  end
  local entry = match(delivery, '^%d+%-%d+')
  if not is_read(entry) then
    return 'asked'
  elseif call('XPENDING', stream, group, entry, entry, 1)[1] then
    return 'open'
  elseif call('HEXISTS', quarantine_index, entry) == 1 then
    return 'refused', 'the worker takes it for no event any more: it is in the quarantine'
  elseif kind == 'replay-gone' then
    return 'overtaken', 'its endpoint was deleted meanwhile: whether it was delivered before is in its history'
  end
  return 'done'
end

-- What became of one whose request was granted, and why.
local function granted(delivery, died, since)
  if kind == 'send-now' then
    return sent(delivery, since)
  end
  if kind == 'redeliver' and call('EXISTS', prefix .. 'delivery:' .. delivery) == 1 then
    return where(delivery)
  end
  local died_now = tonumber(call('ZSCORE', dead, delivery) or -1)
  if died_now < 0 then
    return 'done'
  elseif died_now == died then
    -- What was answered is done with its answer, so this one was refused, and the answer is lost; or its keys are broken.
    return now - since > patience and 'refused' or 'asked', 'the worker could not carry it out'
  elseif kind == 'discard' then
    return 'overtaken', 'it went out and died again'
  end
  return 'dead_again', why_dead(delivery)
end

local function look(delivery)
  local holder = call('HGET', claims, delivery)
  local own, died, request = match(holder or '', '^([%w_-]+) (%d+) (%S+)$')
  if own ~= id then
    return 'stranger'
  elseif request == 'replayed' then
    return replayed(delivery)
  end
  local since = match(request, '^granted@(%d+)$')
  if not since then
    local answer = answer_to(request)
    if answer == nil then
      return 'asked'
    elseif answer == not_there then
      return 'overtaken', 'somebody else had it sent again or dropped'
    elseif answer == taken_before then
      return 'repeated'
    elseif answer and sub(answer, 1, 7) == 'error: ' then
      return 'refused', sub(answer, 8)
    end
    since = whole(now)
    call('HSET', claims, delivery, id .. ' ' .. died .. ' granted@' .. since)
  end
  return granted(delivery, tonumber(died), tonumber(since))
end

local ENDS = {done = true, refused = true, dead_again = true, overtaken = true, repeated = true}
local answer = {'BOOKED', call('HGET', key, 'state'), call('HGET', key, 'rate'), call('HGET', key, 'laid'), 0}
for at = 10, #ARGV do
  local delivery = ARGV[at]
  local word, why = look(delivery)
  if ENDS[word] then
    call('HDEL', claims, delivery)
    call('HINCRBY', key, 'open', -1)
    if word == 'repeated' then
      call('HINCRBY', key, 'taken', -1)
    else
      book(prefix, id, delivery, word, why or '')
    end
  end
  answer[#answer + 1] = word
end
answer[5] = count_in(key, 'open')
return answer
