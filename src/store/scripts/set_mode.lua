#!lua flags=allow-oom
-- Says what becomes of a stream's entries from now on, if it is still as the caller believes.
-- KEYS    1 lease  2 mode  3 cursor
-- ARGV    1 term  2 the mode that it has, or ''  3 the one that it gets, or ''
-- Answer  {'OK'} | {'IS', the mode that it has, or ''} | {'LOST'}
-- Flags   allow-oom: it is a few bytes, and what follows from it frees memory.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
require_types(KEYS[2], 'string', KEYS[3], 'string')
local mode = call('GET', KEYS[2]) or ''
-- It may have been done before, by a call whose answer was lost. Written anew, so that replicas can be waited for.
if mode ~= ARGV[2] and mode ~= ARGV[3] then
  return {'IS', mode}
end
if ARGV[3] == '' then
  call('DEL', KEYS[2])
else
  call('SET', KEYS[2], ARGV[3])
end
-- What was settled here is what the barrier says from now on, and how far the parts are is not known yet.
if mode ~= ARGV[3] and sub(ARGV[3], 1, 7) == 'routed ' then
  call('DEL', KEYS[3])
end
return {'OK'}
