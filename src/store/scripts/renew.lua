#!lua flags=allow-oom
-- Prolongs the lease.
-- KEYS    1 lease
-- ARGV    1 term  2 ttl in ms
-- Answer  {'RENEWED'} | {'LOST'}
-- Flags   allow-oom: the lease must not run out because Redis is full.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
call('PEXPIRE', KEYS[1], whole(require_count(ARGV[2], 1, 1e15)))
return {'RENEWED'}
