-- Has the owner redeliver or discard some letters of one endpoint for an operation: the requests, whose they are, and how far the
-- operation is then are one step. A letter is taken only as it died when it was planned, and never from another operation.
-- The first line, with its flags, is added in `store/operations.rs`.
--
-- KEYS    1 lease  2 operation:ID  3 operation-endpoints:ID  4 operation-claims  5 inbox  6 dead
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 redeliver or discard  5 who and why as JSON
--         6 most that may wait in the inbox  7 endpoint  8 its place before  9 its place after, or `end`, then for each letter its id
--         and when it died
-- Answer  {'TAKEN', for each letter its request, or why not: `own`, `overtaken`, `gone` or `full`} | {'BUSY'}, too many requests
--         wait | {'STOPPED'}, it is not running | {'MOVED'}, the place is another | {'LOST'}
-- Flags   allow-oom for discards, which make room. What goes out again can wait until a full Redis has some.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, places, claims, inbox, dead = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local prefix, id, op, mark, most = ARGV[2], ARGV[3], ARGV[4], ARGV[5], require_count(ARGV[6], 1, 1e6)
local endpoint, before, after = ARGV[7], ARGV[8], ARGV[9]
require_types(key, 'hash', places, 'hash', claims, 'hash', inbox, 'stream', dead, 'zset', prefix .. 'operation-results:' .. id, 'stream')
local letters = (#ARGV - 9) / 2
if letters > MAX_ITEMS or letters ~= math.floor(letters) then
  error({err = 'ERR there are not as many times as letters, or too many; nothing was changed'})
end
if call('HGET', key, 'state') ~= 'running' then
  return {'STOPPED'}
elseif call('HGET', places, endpoint) ~= before then
  return {'MOVED'}
elseif call('XLEN', inbox) + letters > most then
  return {'BUSY'}
end

-- Whatever comes back to a place that was passed: never more than was planned.
local room = count_in(key, 'count') - count_in(key, 'taken')
local answer, taken, opened = {'TAKEN'}, 0, 0
for at = 10, #ARGV, 2 do
  local delivery, died = ARGV[at], ARGV[at + 1]
  local holder = call('HGET', claims, delivery)
  local held_by = holder and match(holder, '^[%w_-]+')
  if held_by == id then
    answer[#answer + 1] = 'own'
  elseif tonumber(call('ZSCORE', dead, delivery) or -1) ~= tonumber(died) then
    answer[#answer + 1] = 'gone'
  elseif taken >= room then
    answer[#answer + 1] = 'full'
  elseif holder then
    taken = taken + 1
    book(prefix, id, delivery, 'overtaken', held_by .. ' had it under way')
    answer[#answer + 1] = 'overtaken'
  else
    local request = call('XADD', inbox, '*', 'op', op, 'id', delivery, 'operation', id, 'mark', mark)
    call('HSET', claims, delivery, id .. ' ' .. died .. ' ' .. request)
    taken, opened = taken + 1, opened + 1
    answer[#answer + 1] = request
  end
end
if taken > 0 then
  call('HINCRBY', key, 'taken', taken)
end
if opened > 0 then
  call('HINCRBY', key, 'open', opened)
end
if after == 'end' then
  call('HDEL', places, endpoint)
else
  call('HSET', places, endpoint, after)
end
return answer
