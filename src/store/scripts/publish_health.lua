#!lua
-- Publishes what the owner knows of its endpoints: a few at a time, beside the work and never within a settle. Events of Herald's
-- own go out in the same step as the entry that says that they did, so that neither a crash nor a lost answer doubles one.
-- KEYS    1 stream  2 lease  3 health  4 unserved
-- ARGV    1 term  2 entries of health  3 entries of unserved  4 endpoints that are gone  5 events
--         then for each of the first two a field and its text, of the gone the endpoints, of the events the bodies
-- Answer  {'PUBLISHED'} | {'LOST'}
-- Flags   none: on a full Redis it is left undone, and readers see how old what they read is.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local entries, unserved = require_count(ARGV[2], 0, MAX_ITEMS), require_count(ARGV[3], 0, MAX_ITEMS)
local gone, events = require_count(ARGV[4], 0, MAX_ITEMS), require_count(ARGV[5], 0, MAX_ITEMS)
if #ARGV ~= 5 + 2 * entries + 2 * unserved + gone + events then
  error({err = 'ERR the number of arguments is wrong; nothing was changed'})
end
require_types(KEYS[1], 'stream', KEYS[3], 'hash', KEYS[4], 'hash')

local at = 6
local function take(key, count)
  for _ = 1, count do
    call('HSET', key, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
end
take(KEYS[3], entries)
take(KEYS[4], unserved)
for _ = 1, gone do
  call('HDEL', KEYS[3], ARGV[at])
  at = at + 1
end
for _ = 1, events do
  call('XADD', KEYS[1], '*', 'event', ARGV[at])
  at = at + 1
end
return {'PUBLISHED'}
