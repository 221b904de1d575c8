#!lua flags=allow-oom
-- Starts, pauses, resumes or cancels an operation, or sets its rate. Only its id is needed, and what it is about never changes.
-- KEYS    1 operation:ID  2 operations-planned  3 operations-open
-- ARGV    1 prefix of this partition's keys  2 the operation's id  3 start, pause, resume, cancel or rate
--         4 who and why as JSON  5 entry of the audit log, or how many a second  6 most that may be open  7 most that are kept
-- Answer  {'CHANGED', state} | {'MISSING'} | {'REFUSED', state} | {'MANY', number that are open}
-- Flags   allow-oom: a full Redis is when somebody discards, pauses and cancels; and it writes next to nothing.

local key, planned, open = KEYS[1], KEYS[2], KEYS[3]
local prefix, id, verb, who, detail = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local most_open, most_kept = require_count(ARGV[6], 1, 1e6), require_count(ARGV[7], 1, 1e6)
require_types(key, 'hash', planned, 'zset', open, 'zset', prefix .. 'operations-ended', 'zset')
local state = call('HGET', key, 'state')
if not state then
  return {'MISSING'}
end

local NEXT = {
  start = {planned = 'running'},
  pause = {running = 'paused', paused = 'paused'},
  resume = {paused = 'running', running = 'running'},
  cancel = {planned = 'cancelled', running = 'cancelling', paused = 'cancelling', cancelling = 'cancelling'},
  rate = {planned = 'planned', running = 'running', paused = 'paused'},
}
local after = (NEXT[verb] or {})[state]
if not after then
  return {'REFUSED', state}
end
if verb == 'rate' then
  call('HSET', key, 'rate', require_rate(detail))
  return {'CHANGED', after}
end
if verb == 'start' then
  local count = call('ZCARD', open)
  if count >= most_open then
    return {'MANY', count}
  end
  call('HSET', key, 'started', who, 'audit', detail)
  call('ZADD', open, whole(now_ms()), id)
elseif state ~= after then
  call('HSET', key, 'changed', who)
end
call('HSET', key, 'state', after)
if state == 'planned' then
  call('PERSIST', key)
  call('PERSIST', prefix .. 'operation-ids:' .. id)
  call('ZREM', planned, id)
end
if after == 'cancelled' then
  call('HSET', key, 'ended', whole(now_ms()))
  close_operation(prefix, id, most_kept)
end
return {'CHANGED', after}
