#!lua flags=no-writes
-- The numbers of a stream and its groups. Redis' own XINFO STREAM also shows the first and the last entry with their
-- bodies, which may have any size: here they stay in the server.
-- KEYS    1 stream
-- ARGV    1 the group whose oldest unread entry is wanted, if any
-- Answer  {length, entries added, last generated id,
--          {group, pending, last delivered id, entries read or false, id of its oldest unread entry or false}, …} |
--         {} without a stream
-- Flags   no-writes.

if redis.call('EXISTS', KEYS[1]) == 0 then
  return {}
end

local function by_name(list)
  local fields = {}
  for i = 1, #list, 2 do
    fields[list[i]] = list[i + 1]
  end
  return fields
end

local stream = by_name(redis.call('XINFO', 'STREAM', KEYS[1]))
local answer = {stream['length'], stream['entries-added'], stream['last-generated-id']}
for _, group in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local found = by_name(group)
  local delivered, oldest = found['last-delivered-id'], nil
  if found['name'] == ARGV[1] and delivered ~= answer[3] then
    oldest = redis.call('XRANGE', KEYS[1], '(' .. delivered, '+', 'COUNT', 1)[1]
  end
  answer[#answer + 1] = {found['name'], found['pending'], delivered, found['entries-read'] or false,
    oldest and oldest[1] or false}
end
return answer
