#!lua
-- Publishes what the owner knows of its endpoints: a few at a time, beside the work and never within a settle. Events of Herald's
-- own go out in the same step as the entry that says that they did, so that neither a crash nor a lost answer doubles one.
-- KEYS    1 stream  2 lease  3 health  4 unserved
-- ARGV    1 term  2 entries of health  3 entries of unserved  4 endpoints to forget  5 accounts to forget  6 events
--         then for each of the first two a field and its text, of those to forget the fields, of the events the bodies
-- Answer  {'PUBLISHED'} | {'LOST'}
-- Flags   none: on a full Redis it is left undone, and readers see how old what they read is.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local entries, unserved = require_count(ARGV[2], 0, MAX_ITEMS), require_count(ARGV[3], 0, MAX_ITEMS)
local endpoints, accounts = require_count(ARGV[4], 0, MAX_ITEMS), require_count(ARGV[5], 0, MAX_ITEMS)
local events = require_count(ARGV[6], 0, MAX_ITEMS)
if #ARGV ~= 6 + 2 * entries + 2 * unserved + endpoints + accounts + events then
  error({err = 'ERR the number of arguments is wrong; nothing was changed'})
end
require_types(KEYS[1], 'stream', KEYS[3], 'hash', KEYS[4], 'hash')

local at = 7
local function take(key, count)
  for _ = 1, count do
    call('HSET', key, ARGV[at], ARGV[at + 1])
    at = at + 2
  end
end
take(KEYS[3], entries)
take(KEYS[4], unserved)
local function forget(key, count)
  for _ = 1, count do
    call('HDEL', key, ARGV[at])
    at = at + 1
  end
end
forget(KEYS[3], endpoints)
forget(KEYS[4], accounts)
for _ = 1, events do
  call('XADD', KEYS[1], '*', 'event', ARGV[at])
  at = at + 1
end
return {'PUBLISHED'}
