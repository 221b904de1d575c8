#!lua flags=allow-oom
-- Takes the lease when it is free or holds a value that this worker itself wrote.
-- KEYS    1 lease  2 mode  3 gate  4 next
-- ARGV    1 term: a random value, a blank, and the worker  2 ttl in ms  3… previous terms of this worker
-- Answer  {'ACQUIRED', now ms, mode or ''} | {'TAKEN', value, ms left} | {'GATED', token}
--         | {'RESERVED', worker, ms left}: it is free, but only for the worker that has asked for it
-- Flags   allow-oom: a full Redis can only be emptied by an owner.

-- As long as any worker asks that it be kept for it.
local LONGEST_WISH = 60000

local lease, gate, next = KEYS[1], KEYS[3], KEYS[4]
require_types(lease, 'string', KEYS[2], 'string', gate, 'string', next, 'string')
local ttl = require_count(ARGV[2], 1, 1e15)

local token = call('GET', gate)
if token then
  return {'GATED', token}
end

-- How long `key` lasts. Somebody wrote it without a TTL, or Redis' clock was set back, if that is longer than anybody means: it
-- would block the partition almost for ever.
local function left_of(key, longest, meant)
  local left = call('PTTL', key)
  if left < 0 or left > longest then
    call('PEXPIRE', key, whole(meant))
    left = meant
  end
  return left
end

local value, asking = call('GET', lease), call('GET', next)
local is_own = false
for i = 3, #ARGV do
  is_own = is_own or ARGV[i] == value
end
if value and not is_own then
  -- A living owner renews its lease in time.
  return {'TAKEN', value, left_of(lease, math.max(ttl, 60000), ttl)}
end
local is_asking = asking == match(ARGV[1], '^%S+ (.*)$')
if asking and not is_asking and not value then
  return {'RESERVED', asking, left_of(next, LONGEST_WISH, 3000)}
end
call('SET', lease, ARGV[1], 'PX', whole(ttl))
if is_asking then
  call('DEL', next)
end
return {'ACQUIRED', now_ms(), call('GET', KEYS[2]) or ''}
