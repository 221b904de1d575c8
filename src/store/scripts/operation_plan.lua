#!lua flags=allow-oom
-- Writes a plan, which waits to be started and is forgotten after a while. The oldest plans give way to new ones.
-- KEYS    1 operation:ID  2 operations-planned
-- ARGV    1 prefix of this partition's keys  2 the operation's id  3 kind  4 plan as JSON  5 how many it is for
--         6 how many a second  7 after how many ms it is forgotten  8 most plans that are kept
-- Answer  {'PLANNED'} | {'THERE'}, an operation with this id
-- Flags   allow-oom: on a full Redis somebody plans to discard; plans are small, and their number is bounded.

local key, planned = KEYS[1], KEYS[2]
local prefix, id, ttl, most = ARGV[1], ARGV[2], require_count(ARGV[7], 1, 1e12), require_count(ARGV[8], 1, 1e6)
require_count(ARGV[5], 0, 9e15)
require_rate(ARGV[6])
require_types(key, 'hash', planned, 'zset')
if call('EXISTS', key) == 1 then
  return {'THERE'}
end
local now = now_ms()
call('HSET', key, 'kind', ARGV[3], 'plan', ARGV[4], 'count', ARGV[5], 'rate', ARGV[6], 'state', 'planned')
call('PEXPIRE', key, whole(ttl))
call('ZADD', planned, whole(now), id)
for _, old in ipairs(call('ZRANGE', planned, '-inf', whole(now - ttl), 'BYSCORE', 'LIMIT', 0, MAX_FORGOTTEN)) do
  call('ZREM', planned, old)
end
keep_newest(prefix, planned, most)
return {'PLANNED'}
