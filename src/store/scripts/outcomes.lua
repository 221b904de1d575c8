#!lua flags=no-writes
-- Where deliveries stand, all at one instant.
-- KEYS    1 stream  2 due
-- ARGV    1 prefix of this partition's keys  2 group  3… deliveries
-- Answer  for each, 'dead' | 'owed' | 'owed ' .. ms of its next attempt | 'settled': it is neither
-- Flags   no-writes.

require_types(KEYS[1], 'stream', KEYS[2], 'zset')
local prefix, group = ARGV[1], ARGV[2]
local last_read
local groups = try('XINFO', 'GROUPS', KEYS[1])
for i = 1, groups.err and 0 or #groups do
  local found = by_name(groups[i])
  if found.name == group then
    last_read = pad(found['last-delivered-id'])
  end
end

-- Not read yet, or read and not dealt with.
local open = {}
local function is_open(entry)
  if open[entry] == nil then
    open[entry] = not last_read or pad(entry) > last_read or #call('XPENDING', KEYS[1], group, entry, entry, 1) > 0
  end
  return open[entry]
end

local answer = {}
for i = 3, #ARGV do
  local id = ARGV[i]
  local entry = match(id, '^(%d+%-%d+):')
  if not entry then
    error({err = 'ERR ' .. sub(id, 1, 64) .. ' is no delivery'})
  end
  if call('EXISTS', prefix .. 'delivery:' .. id) == 1 then
    local due = call('ZSCORE', KEYS[2], id)
    answer[#answer + 1] = due and 'owed ' .. whole(tonumber(due)) or 'owed'
  elseif call('EXISTS', prefix .. 'dead-letter:' .. id) == 1 then
    answer[#answer + 1] = 'dead'
  else
    answer[#answer + 1] = is_open(entry) and 'owed' or 'settled'
  end
end
return answer
