#!lua flags=allow-oom
-- Makes the group if it is missing, and binds the partition to a registry if it is bound to none.
-- A lost group starts again from the cursor if the stream is still the one that the cursor is about. Another stream,
-- made since under the same name, is read from its beginning.
-- KEYS    1 stream  2 lease  3 cursor  4 registry-id
-- ARGV    1 term  2 start: '0', '$' or an entry id  3 registry  4 group
-- Answer  {'OPENED', made after or false, last delivered, last generated, registry, set back 0 or 1} | {'LOST'}
--         set back: the group stands before the cursor, so somebody moved it, and it will deliver again; or it was made
--         in another stream than that of the cursor, whose ids may have been others'
-- Flags   allow-oom: without it no term starts on a full Redis.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, start, group = KEYS[1], ARGV[2], ARGV[4]
require_types(stream, 'stream', KEYS[3], 'string', KEYS[4], 'string')
local cursor = call('GET', KEYS[3])
if cursor and not is_entry(cursor) then
  error({err = 'ERR the key ' .. KEYS[3] .. ' holds no entry id; nothing was changed'})
elseif start ~= '0' and start ~= '$' and not is_entry(start) then
  error({err = 'ERR the start is no entry id; nothing was changed'})
end

local info, last_delivered = {['last-generated-id'] = '0-0', ['entries-added'] = 0, length = 0}, nil
if call('EXISTS', stream) == 1 then
  info = by_name(call('XINFO', 'STREAM', stream))
  for _, flat in ipairs(call('XINFO', 'GROUPS', stream)) do
    local found = by_name(flat)
    if found.name == group then
      last_delivered = found['last-delivered-id']
    end
  end
end
local last_generated = info['last-generated-id']

-- Whether this is another stream than the one that the cursor is about. A stream is trimmed from its oldest entry on,
-- and never beyond what is settled: so if any entry is left that is not after the cursor, then so is the one that the
-- cursor is about, the last one read or the first one pending. A stream that was emptied remembers its last id.
local function is_another_stream()
  if cursor == start or pad(last_generated) == pad(cursor) then
    return false
  elseif pad(last_generated) < pad(cursor) then
    return true
  end
  local first = info['first-entry']
  return first and pad(first[1]) <= pad(cursor) and #call('XRANGE', stream, cursor, after(cursor), 'COUNT', 1) == 0
end

local made_after = false
-- How many entries lie before the start, if that is known without a walk: entries that were trimmed unread are counted
-- from it.
local entries_read
local set_back = last_delivered and cursor and pad(last_delivered) < pad(cursor)
if not last_delivered then
  if not cursor then
    made_after = start == '0' and '0-0' or start == '$' and last_generated or start
    entries_read = start == '0' and info['entries-added'] - info.length
  elseif is_another_stream() then
    made_after, entries_read, set_back = '0-0', 0, true
  else
    made_after = cursor
  end
  if pad(made_after) >= pad(last_generated) then
    entries_read = info['entries-added']
  end
  local create = {'XGROUP', 'CREATE', stream, group, made_after, 'MKSTREAM'}
  if entries_read then
    create[7], create[8] = 'ENTRIESREAD', whole(entries_read)
  end
  call(unpack(create))
  call('SET', KEYS[3], made_after)
  last_delivered = made_after
end

call('SET', KEYS[4], ARGV[3], 'NX')
return {'OPENED', made_after, last_delivered, last_generated, call('GET', KEYS[4]), set_back and 1 or 0}
