#!lua flags=allow-oom
-- Notes at which endpoints an operation has something to do. Each then has a place up to which its letters were taken.
-- KEYS    1 lease  2 operation:ID  3 operation-endpoints:ID
-- ARGV    1 term  2 whether these are the last: 0 or 1  3… endpoints
-- Answer  {'LAID'} | {'LOST'}
-- Flags   allow-oom: a discard makes room, and endpoints are few.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
require_types(KEYS[2], 'hash', KEYS[3], 'hash')
-- One that somebody took away, or that has ended meanwhile, is not begun anew.
if call('HGET', KEYS[2], 'state') == 'running' and call('HGET', KEYS[2], 'laid') ~= '1' then
  for i = 3, #ARGV do
    call('HSETNX', KEYS[3], ARGV[i], '')
  end
  if ARGV[2] == '1' then
    call('HSET', KEYS[2], 'laid', '1')
  end
end
return {'LAID'}
