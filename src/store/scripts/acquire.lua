#!lua flags=allow-oom
-- Takes the lease when it is free or holds a value that this worker itself wrote.
-- KEYS    1 lease
-- ARGV    1 term  2 ttl in ms  3… previous terms of this worker
-- Answer  {'ACQUIRED', now ms} | {'TAKEN', value, ms left}
-- Flags   allow-oom: a full Redis can only be emptied by an owner.

require_types(KEYS[1], 'string')
local ttl = require_count(ARGV[2], 1, 1e15)

local value = call('GET', KEYS[1])
local own = not value
for i = 3, #ARGV do
  own = own or ARGV[i] == value
end
if own then
  call('SET', KEYS[1], ARGV[1], 'PX', whole(ttl))
  return {'ACQUIRED', now_ms()}
end

local left = call('PTTL', KEYS[1])
if left < 0 or left > math.max(ttl, 60000) then
  -- Somebody wrote it without a TTL, or Redis' clock was set back: nobody takes a lease that long. It would block the
  -- partition almost for ever; a living owner renews its lease in time.
  call('PEXPIRE', KEYS[1], whole(ttl))
  left = ttl
end
return {'TAKEN', value, left}
