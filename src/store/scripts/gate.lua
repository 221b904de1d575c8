#!lua flags=allow-oom
-- Keeps a part closed until its split has handed over to it: nobody can have its lease.
-- KEYS    1 gate  2 routed  3 lease  4 registry-id
-- ARGV    1 token of the split
-- Answer  {'OK'} | {'GATED', token of another split} | {'USED'}: somebody works on it, or did
-- Flags   allow-oom: it is a few bytes.

require_types(KEYS[1], 'string')
local gate = call('GET', KEYS[1])
if gate and gate ~= ARGV[1] then
  return {'GATED', gate}
elseif not gate and call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then
  return {'USED'}
end
call('SET', KEYS[1], ARGV[1])
return {'OK'}
