#!lua flags=allow-oom
-- Prolongs the lease.
-- KEYS    1 lease  2 next
-- ARGV    1 term  2 ttl in ms
-- Answer  {'RENEWED', the worker that asks for the partition or nil} | {'LOST'}
-- Flags   allow-oom: the lease must not run out because Redis is full.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
require_types(KEYS[2], 'string')
call('PEXPIRE', KEYS[1], whole(require_count(ARGV[2], 1, 1e15)))
return {'RENEWED', call('GET', KEYS[2])}
