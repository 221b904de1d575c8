#!lua flags=allow-oom
-- Removes intents of an account in a sandbox, a page at a time.
-- KEYS    1 deadlines  2 clock  3 counts  4… indexes of its statuses
-- ARGV    1 start of the records' keys  2 created at this µs or before, or '' for now  3 most intents
-- Answer  {that instant µs, intents that were removed}; fewer than the most, and none is left
-- Flags   allow-oom: it frees memory.

require_types(KEYS[1], 'zset', KEYS[2], 'hash', KEYS[3], 'hash')
local until_micros = ARGV[2] ~= '' and require_micros(ARGV[2]) or read_clock(KEYS[2])
local most = require_count(ARGV[3], 1, MAX_ITEMS)
for i = 4, #KEYS do
  require_types(KEYS[i], 'zset')
end
local removed = 0
for i = 4, #KEYS do
  local ids = removed < most
    and call('ZRANGE', KEYS[i], '-inf', whole(until_micros), 'BYSCORE', 'LIMIT', 0, most - removed) or {}
  for j = 1, #ids do
    call('DEL', ARGV[1] .. ids[j])
    call('ZREM', KEYS[1], ids[j])
    call('ZREM', KEYS[i], ids[j])
  end
  removed = removed + #ids
end
try('HINCRBY', KEYS[3], 'forgotten', removed)
return {whole(until_micros), removed}
