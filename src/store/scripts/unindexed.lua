#!lua flags=allow-oom
-- Looks for dead letters that stand in no index, because an older Herald wrote them: a page of all letters, in the order
-- of their times. Up to 1 MiB of letters.
-- KEYS    1 lease  2 dead  3 dead-mark  4 dead-facts  5 dead-kinds  6 dead-names
-- ARGV    1 term  2 prefix of this partition's keys  3 where to begin: `mark`, `start`, or the time of the last one looked
--         at, with its id in 4  5 most to look at  6 most to return
-- Answer  {'UNINDEXED', letters there are, lines in dead-facts, next time or false, next id or false,
--         id, letter or false, id, …}, without a next one after the last | {'LOST'}
--         dead-mark then holds a time: every letter from before it was looked at, and none was found without an index, or
--         it was returned and could not be given one.
-- Flags   allow-oom: it moves a mark, and a full Redis is when people look for letters to discard.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, dead, mark = ARGV[2], KEYS[2], KEYS[3]
local from, last_id = ARGV[3], ARGV[4]
local look, most = require_count(ARGV[5], 1, MAX_ITEMS), require_count(ARGV[6], 1, MAX_ITEMS)
require_types(dead, 'zset', mark, 'string')
require_dead_types()

local function least()
  if from == 'start' then
    return '-inf'
  elseif from == 'mark' then
    local known = call('GET', mark)
    return known and find(known, '^%d+$') and known or '-inf'
  end
  return whole(require_count(from, 0, 9e15))
end

local first = least()
local function page_at(offset)
  return call('ZRANGE', dead, first, '+inf', 'BYSCORE', 'LIMIT', whole(offset), whole(look), 'WITHSCORES')
end

-- Letters of one time have an order of Redis' own, so the last one looked at is looked for among those of its time. If it
-- is gone, these are looked at again.
local function next_page()
  local offset, page = 0, {}
  if from ~= 'start' and from ~= 'mark' then
    repeat
      page = page_at(offset)
      for i = 1, #page, 2 do
        if page[i] == last_id and page[i + 1] == first then
          return page_at(offset + (i + 1) / 2)
        end
      end
      offset = offset + look
    until #page < 2 * look or page[#page] ~= first
  end
  return page_at(0)
end

local page = next_page()
local ids, times = {}, {}
for i = 1, #page, 2 do
  ids[#ids + 1], times[#times + 1] = page[i], whole(tonumber(page[i + 1]))
end
local lines = #ids > 0 and call('HMGET', dead_facts, unpack(ids)) or {}
local letters, bytes, ends_at, marked = {}, 0, #ids, nil
for i, id in ipairs(ids) do
  local known, at = dead_line_of(lines[i], '')
  if not known or at ~= times[i] then
    local letter = call('MGET', prefix .. 'dead-letter:' .. id)[1]
    letters[#letters + 1], letters[#letters + 2] = id, letter
    marked = marked or times[i]
    bytes = bytes + (letter and #letter or 0)
    if bytes >= MAX_READ_BYTES or #letters / 2 >= most then
      ends_at = i
      break
    end
  end
end
local is_over = ends_at == #ids and #ids < look
marked = marked or is_over and whole(now_ms()) or times[ends_at]
call('SET', mark, marked)
return {'UNINDEXED', call('ZCARD', dead), call('HLEN', dead_facts), not is_over and times[ends_at], not is_over and ids[ends_at],
  unpack(letters)}
