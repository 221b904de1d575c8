#!lua
-- Gives entries of a routed stream to one of its parts, each once: only if that has taken or passed everything up to `after`.
-- KEYS    1 the part's stream  2 routed  3 gate  4 places
-- ARGV    1 token of the split  2 its barrier, or '' while it hands over: then the gate stays  3 after  4 up to which entry of the stream above this is all
--         5 '', or for a Redis that is full how many entries it may take at most  6 its own group
--         7… of each entry: head and text as `route_read.lua` gives them
-- Answer  {'OK', entries, the id of the last of them or ''} | {'AT', what it has taken or passed up to} | {'GATED', token of another split}
--         | {'OPEN'}: what was to be handed over to it is there, and it has begun | {'SOME', what it has taken up to}
-- Flags   none; and allow-oom for a Redis that is full. What is delivered makes room, here and in the stream above, but what cannot be passed on is
--         never delivered: so a part gets a little once it is done with what it has, and no more.

local stream, places, token, barrier, after_id, upto = KEYS[1], KEYS[4], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
require_types(stream, 'stream', KEYS[2], 'string', KEYS[3], 'string', places, 'zset')
local gate, at = call('GET', KEYS[3]), call('GET', KEYS[2])
if gate and gate ~= token then
  return {'GATED', gate}
end
local hands_over = barrier == ''
if hands_over then
  if not gate then
    return {'OPEN'}
  end
  barrier = '0-0'
end
if not at or not is_entry(at) or pad(at) < pad(barrier) then
  at = barrier
end
if pad(upto) < pad(after_id) then
  error({err = 'ERR ' .. upto .. ' is before ' .. after_id})
end

local function last_id()
  return call('EXISTS', stream) == 1 and by_name(call('XINFO', 'STREAM', stream))['last-generated-id'] or '0-0'
end

-- Its split is over: whatever the stream above had of this part is here, or comes from here on.
if gate and not hands_over then
  call('DEL', KEYS[3])
end
if at ~= after_id then
  return {'AT', at}
end

local most = tonumber(ARGV[5])

-- Something waits to be read, or to be done with.
local function is_busy()
  local last = last_id()
  if last == '0-0' then
    return false
  end
  for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
    local group = by_name(flat)
    if group.name == ARGV[6] then
      return group.pending > 0 or group['last-delivered-id'] ~= last
    end
  end
  return true
end

if most and #ARGV > 6 and is_busy() then
  error({err = 'OOM and it is not done with what it has'})
end

local function unpacked(lengths, text)
  if lengths == '' then
    return {'event', text}
  end
  local fields, from = {}, 1
  for length in string.gmatch(lengths, '%d+') do
    fields[#fields + 1] = sub(text, from, from + length - 1)
    from = from + length
  end
  return fields
end

-- The part's last id, once it is known that one of its own is larger than what came.
local last
-- Adds one with its own id, or with the next after the last where that is larger: ids only grow. Returns its id, or nil and why not.
local function add(id, fields)
  if not last or pad(id) > pad(last) then
    local new = try('XADD', stream, id, unpack(fields))
    if type(new) == 'string' then
      last = last and new
      return new
    elseif not find(new.err, 'equal or smaller', 1, true) then
      return nil, new.err
    end
    last = last_id()
  end
  local next = after(last)
  if not next then
    return nil, 'ERR the last possible id is in use'
  end
  local new = try('XADD', stream, next, unpack(fields))
  if type(new) ~= 'string' then
    return nil, new.err
  end
  last = new
  return new
end

local count, done, newest = 0, after_id, nil
for i = 7, #ARGV, 2 do
  if count == most then
    call('SET', KEYS[2], done)
    return {'SOME', done}
  end
  local head, text = ARGV[i], ARGV[i + 1]
  local id, lengths, place, only = head, '', '', ''
  if find(head, ':', 1, true) then
    id, lengths, place, only = match(head, '^([%d-]+):([%d,]*):?([%d-]*):?(.*)$')
  end
  local new, why = add(id, unpacked(lengths, text))
  if not new then
    -- What was added stays, and is not added again.
    if done ~= after_id then
      call('SET', KEYS[2], done)
    end
    error({err = why})
  end
  if place ~= '' then
    local padded = pad(new)
    call('ZREMRANGEBYLEX', places, '[' .. padded .. ' ', '(' .. padded .. '!')
    call('ZADD', places, 0, padded .. ' ' .. pad(place) .. (only ~= '' and ' ' .. only or ''))
  end
  count, done, newest = count + 1, id, new
end
call('SET', KEYS[2], upto)
return {'OK', count, newest or ''}
