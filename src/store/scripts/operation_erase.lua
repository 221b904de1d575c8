-- Drops dead letters of an account, or entries of the stream, for an operation that erases what is kept of it. What another operation
-- has under way is left until that has seen what became of it. Or moves what is left in the quarantine behind its end, a part at a
-- time: Redis only marks an entry as deleted, and forgets its bytes with the last of those that lie in one page with it.
-- The first line, with its flags, is added in `store/operations/erase.rs`.
--
-- KEYS    1 lease  2 operation:ID  3 operation-claims  4 stream  5 dead  6 quarantine  7 quarantine-index
--         8 dead-facts  9 dead-kinds  10 dead-names
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 letters or entries, then their ids; or quarantine
-- Answer  {'ERASED', how many} | {'STOPPED'}, it is not running | {'LOST'}
--         of the quarantine, with how many it has moved: the ids of its first and last entry, 0-0 if it is empty
-- Flags   allow-oom: it only frees, in the end.

-- What one call moves within the quarantine, so that it is short.
local MAX_MOVED = 100
local MAX_MOVED_BYTES = 262144

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, claims, stream, dead, quarantine, quarantine_index = KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local prefix, id, what = ARGV[2], ARGV[3], ARGV[4]
if #ARGV - 4 > MAX_ITEMS then
  error({err = 'ERR too many ids; nothing was changed'})
end
require_types(key, 'hash', claims, 'hash', stream, 'stream', dead, 'zset', quarantine, 'stream', quarantine_index, 'hash')
require_dead_types()
if call('HGET', key, 'state') ~= 'running' then
  return {'STOPPED'}
end

if what == 'quarantine' then
  -- A few are moved over and over, until they have filled a page.
  local moved, bytes, most = 0, 0, call('XLEN', quarantine) > 0 and MAX_MOVED or 0
  while moved < most and bytes < MAX_MOVED_BYTES do
    local found = call('XRANGE', quarantine, '-', '+', 'COUNT', 1)[1]
    move_to_end(quarantine, quarantine_index, found)
    moved = moved + 1
    for _, text in ipairs(found[2]) do
      bytes = bytes + #text
    end
  end
  local first, last = call('XRANGE', quarantine, '-', '+', 'COUNT', 1)[1], call('XREVRANGE', quarantine, '+', '-', 'COUNT', 1)[1]
  return {'ERASED', moved, first and first[1] or '0-0', last and last[1] or '0-0'}
end

local erased = 0
if what == 'entries' then
  erased = #ARGV > 4 and call('XDEL', stream, unpack(ARGV, 5)) or 0
else
  for at = 5, #ARGV do
    local letter = ARGV[at]
    local endpoint = match(letter, ':(.*)$') or ''
    local index = prefix .. 'dead:' .. endpoint
    require_types(index, 'zset')
    if not call('HGET', claims, letter) and call('ZSCORE', dead, letter) then
      local facts = dead_line_of(call('HGET', dead_facts, letter), endpoint)
      call('DEL', prefix .. 'dead-letter:' .. letter)
      if facts then
        unindex_dead(prefix, letter, facts)
      else
        call('HDEL', dead_facts, letter)
      end
      call('ZREM', index, letter)
      call('ZREM', dead, letter)
      erased = erased + 1
    end
  end
  call('HINCRBY', key, 'taken', erased)
  call('HINCRBY', key, 'done', erased)
end
return {'ERASED', erased}
