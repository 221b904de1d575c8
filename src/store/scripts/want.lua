#!lua flags=allow-oom
-- Asks the owner for the partition, and keeps it for this worker for a while once it is free.
-- KEYS    1 lease  2 next
-- ARGV    1 worker  2 for how many ms
-- Answer  {'FREE'}: nobody has it, and nobody need be asked | {'ASKED', lease's value, ms left} | {'BUSY', the worker that asks}
-- Flags   allow-oom: who owns what is decided on a full Redis too.

require_types(KEYS[1], 'string', KEYS[2], 'string')
local holds = require_count(ARGV[2], 1, 60000)
local value, asking = call('GET', KEYS[1]), call('GET', KEYS[2])
if asking and asking ~= ARGV[1] then
  return {'BUSY', asking}
elseif not value then
  return {'FREE'}
end
call('SET', KEYS[2], ARGV[1], 'PX', whole(holds))
return {'ASKED', value, call('PTTL', KEYS[1])}
