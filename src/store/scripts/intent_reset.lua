#!lua flags=allow-oom
-- Removes intents of an account in a sandbox and what it was told, a page at a time. Its numbers go on.
-- KEYS    1 deadlines  2 clock  3 counts  4 feed of the account  5… indexes of its statuses
-- ARGV    1 start of the records' keys  2 created at this µs or before, or '' for now  3 most intents, and most events
--         4 account  5 number of the last event that goes, or '' for the last one now
-- Answer  {that instant µs, that number, intents that were removed, events that were}; fewer than the most of both, and none
--         is left
-- Flags   allow-oom: it frees memory.

require_types(KEYS[1], 'zset', KEYS[2], 'hash', KEYS[3], 'hash', KEYS[4], 'stream')
local until_micros = ARGV[2] ~= '' and require_micros(ARGV[2]) or read_clock(KEYS[2])
local most = require_count(ARGV[3], 1, MAX_ITEMS)
local last = ARGV[5] ~= '' and ARGV[5] or call('HGET', KEYS[3], 'events:' .. ARGV[4]) or '0'
require_count(last, 0, 9007199254740991)
for i = 5, #KEYS - 1 do
  require_types(KEYS[i], 'zset')
end
local removed = 0
for i = 5, #KEYS - 1 do
  local ids = removed < most
    and call('ZRANGE', KEYS[i], '-inf', whole(until_micros), 'BYSCORE', 'LIMIT', 0, most - removed) or {}
  for j = 1, #ids do
    call('DEL', ARGV[1] .. ids[j])
    call('ZREM', KEYS[1], ids[j])
    call('ZREM', KEYS[i], ids[j])
  end
  removed = removed + #ids
end
local told = call('XRANGE', KEYS[4], '-', last .. '-18446744073709551615', 'COUNT', whole(most))
for i = 1, #told do
  call('XDEL', KEYS[4], told[i][1])
end
try('HINCRBY', KEYS[3], 'forgotten', removed)
return {whole(until_micros), last, removed, #told}
