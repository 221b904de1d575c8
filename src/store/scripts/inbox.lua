#!lua flags=no-writes
-- Requests after a given one, each with what Redis holds of what it is about. Up to 1 MiB.
-- KEYS    1 lease  2 inbox  3 quarantine  4 quarantine-index
-- ARGV    1 term  2 prefix of this partition's keys  3 entry id, itself excluded  4 most to return
-- Answer  {'REQUESTS', {id, {field, value, …}, found…}, …} | {'LOST'}; found, by `op`:
--         redeliver, discard: letter or false, another operation that has it under way or false; release: false, or head and its record or false;
--         requeue, discard-quarantined: exists 0 or 1, cut 0 or 1
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local prefix, max = ARGV[2], require_count(ARGV[4], 0, MAX_ITEMS)

local function record(kind, id)
  return call('MGET', prefix .. kind .. id)[1]
end

-- What an operation has under way, nobody else changes: what becomes of it would be told wrongly.
local function other_holder(id, operation)
  local holder = try('HGET', prefix .. 'operation-claims', id)
  local held_by = type(holder) == 'string' and match(holder, '^[%w_-]+') or operation
  return held_by ~= operation and held_by or false
end

local function standing(entry)
  local at, found = quarantined(KEYS[3], KEYS[4], entry)
  if not at then
    return 0, 0
  end
  return 1, found.cut == '1' and 1 or 0
end

-- What others wrote is only looked up here; the reader decides whether it makes sense.
local function look_up(asked)
  local op = asked.op
  if (op == 'redeliver' or op == 'discard') and asked.id then
    return {record('dead-letter:', asked.id), other_holder(asked.id, asked.operation)}
  elseif op == 'release' and asked.endpoint and asked.intent then
    local entry = try('HGET', prefix .. 'heads:' .. asked.endpoint, asked.intent)
    local id = type(entry) == 'string' and entry .. ':' .. asked.endpoint
    return {id, id and record('delivery:', id)}
  elseif (op == 'requeue' or op == 'discard-quarantined') and asked.entry then
    return {standing(asked.entry)}
  end
  return {}
end

local answer, bytes = {'REQUESTS'}, 0
if max == 0 then
  return answer
end
for _, request in ipairs(call('XRANGE', KEYS[2], '(' .. ARGV[3], '+', 'COUNT', whole(max))) do
  local found = look_up(by_name(request[2]))
  answer[#answer + 1] = {request[1], request[2], unpack(found)}
  for _, value in ipairs(found) do
    bytes = bytes + (type(value) == 'string' and #value or 0)
  end
  if bytes >= MAX_READ_BYTES then
    break
  end
end
return answer
