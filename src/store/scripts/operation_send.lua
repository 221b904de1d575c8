#!lua flags=allow-oom
-- Makes some deliveries due at once that wait for their next attempt or in their endpoint's backlog, for an operation.
-- KEYS    1 lease  2 operation:ID  3 operation-ids:ID  4 operation-claims  5 due  6 claimed
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 most
-- Answer  {'SENT', how many are left, deliveries that are under way now} | {'STOPPED'}, it is not running | {'LOST'}
-- Flags   allow-oom: what is sent frees memory.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, ids, claims, due, claimed = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local prefix, id, most = ARGV[2], ARGV[3], require_count(ARGV[4], 1, MAX_ITEMS)
require_types(key, 'hash', ids, 'zset', claims, 'hash', due, 'zset', claimed, 'zset', prefix .. 'operation-results:' .. id, 'stream')
if call('HGET', key, 'state') ~= 'running' then
  return {'STOPPED'}
end
local now, under_way = now_ms(), {}

-- Whether it waited, and is due now.
local function hasten(delivery)
  local due_at = tonumber(call('ZSCORE', due, delivery) or -1)
  if due_at <= now and due_at >= 0 or call('ZSCORE', claimed, delivery) then
    return true
  elseif due_at < 0 then
    local entry, endpoint = match(delivery, '^(%d+%-%d+):(.+)$')
    if not entry or try('ZREM', prefix .. 'backlog:' .. endpoint, pad(entry)) ~= 1 then
      return false
    end
  end
  call('ZADD', due, whole(now), delivery)
  return true
end

local next_ids = call('ZRANGE', ids, 0, whole(most - 1))
for _, delivery in ipairs(next_ids) do
  local holder = call('HGET', claims, delivery)
  if holder then
    book(prefix, id, delivery, 'overtaken', match(holder, '^[%w_-]+') .. ' had it under way')
  elseif hasten(delivery) then
    call('HSET', claims, delivery, id .. ' 0 granted@' .. whole(now))
    under_way[#under_way + 1] = delivery
  else
    book(prefix, id, delivery, 'overtaken', 'it has ended, or waits behind another')
  end
end
if #next_ids > 0 then
  call('ZREM', ids, unpack(next_ids))
  call('HINCRBY', key, 'taken', #next_ids)
  call('HINCRBY', key, 'open', #under_way)
end
return {'SENT', call('ZCARD', ids), unpack(under_way)}
