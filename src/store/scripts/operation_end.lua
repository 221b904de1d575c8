#!lua flags=allow-oom
-- Ends an operation that has nothing left to do, in two steps: its end is in the audit log before it leaves those that are worked on.
-- KEYS    1 lease  2 operation:ID  3 operation-endpoints:ID  4 operation-ids:ID
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 end or close  5 most that are kept
-- Answer  {'ENDED', state, done, taken or planned and not done, entry of the audit log or false} | {'OPEN'} | {'LOST'}
-- Flags   allow-oom: it frees more than it takes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, places, ids = KEYS[2], KEYS[3], KEYS[4]
local prefix, id, most = ARGV[2], ARGV[3], require_count(ARGV[5], 1, 1e6)
require_types(key, 'hash', places, 'hash', ids, 'zset', prefix .. 'operations-open', 'zset', prefix .. 'operations-ended', 'zset')
local state = call('HGET', key, 'state')
if not state then
  call('ZREM', prefix .. 'operations-open', id)
  return {'OPEN'}
end
local planned, done = count_in(key, 'count'), count_in(key, 'done')
local ended = done + count_in(key, 'refused') + count_in(key, 'dead_again') + count_in(key, 'overtaken')

if state == 'cancelling' and count_in(key, 'open') == 0 then
  state = 'cancelled'
  call('HSET', key, 'state', state, 'ended', whole(now_ms()), 'waits', '[]')
elseif state == 'running' and call('HGET', key, 'laid') == '1' and count_in(key, 'open') == 0 and call('EXISTS', places, ids) == 0 then
  -- What was planned and never found had gone before its turn.
  if call('HGET', key, 'kind') == 'erase' then
    -- Whatever took away what was planned: nothing of it is there any more.
    done, ended = math.max(done, planned), math.max(ended, planned)
    call('HSET', key, 'done', whole(done))
  elseif planned > ended then
    call('HINCRBY', key, 'overtaken', planned - ended)
    ended = planned
  end
  state = 'done'
  call('HSET', key, 'state', state, 'ended', whole(now_ms()), 'waits', '[]')
end
if state ~= 'done' and state ~= 'cancelled' then
  return {'OPEN'}
end
if ARGV[4] == 'close' then
  close_operation(prefix, id, most)
end
return {'ENDED', state, done, ended - done, call('HGET', key, 'audit')}
