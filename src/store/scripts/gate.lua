#!lua flags=allow-oom
-- Keeps a part closed until its split has handed over to it: nobody can have its lease. Or opens it, where the split was cancelled.
-- KEYS    1 gate  2 routed  3 lease  4 registry-id  5 unfinished  6 dead
-- ARGV    1 token of the split  2 close or open
-- Answer  {'OK'} | {'GATED', token of another split, which has handed over something} | {'USED'}: somebody works on it, or did
-- Flags   allow-oom: it is a few bytes.

require_types(KEYS[1], 'string')
local gate = call('GET', KEYS[1])
if ARGV[2] == 'open' then
  if gate == ARGV[1] then
    call('DEL', KEYS[1])
  end
  return {'OK'}
end
-- One that was cancelled may have left it closed; it has nothing then.
if gate and gate ~= ARGV[1] and call('EXISTS', KEYS[2], KEYS[5], KEYS[6]) > 0 then
  return {'GATED', gate}
elseif not gate and call('EXISTS', KEYS[2], KEYS[3], KEYS[4]) > 0 then
  return {'USED'}
end
call('SET', KEYS[1], ARGV[1])
return {'OK'}
