-- Drops dead letters of an account, or entries of the stream, for an operation that erases what is kept of it. What another operation
-- has under way is left until that has seen what became of it.
-- The first line, with its flags, is added in `store/operations/erase.rs`.
--
-- KEYS    1 lease  2 operation:ID  3 operation-claims  4 stream  5 dead  6 dead-facts  7 dead-kinds  8 dead-names
-- ARGV    1 term  2 prefix of this partition's keys  3 the operation's id  4 letters or entries, then their ids
-- Answer  {'ERASED', how many} | {'STOPPED'}, it is not running | {'LOST'}
-- Flags   allow-oom: it only frees.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local key, claims, stream, dead = KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local prefix, id, what = ARGV[2], ARGV[3], ARGV[4]
if #ARGV - 4 > MAX_ITEMS then
  error({err = 'ERR too many ids; nothing was changed'})
end
require_types(key, 'hash', claims, 'hash', stream, 'stream', dead, 'zset')
require_dead_types()
if call('HGET', key, 'state') ~= 'running' then
  return {'STOPPED'}
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
