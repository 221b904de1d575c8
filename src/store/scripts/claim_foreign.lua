#!lua flags=allow-oom
-- Takes over what other consumers of the group have pending. Redis drops what was trimmed meanwhile, so that is counted.
-- KEYS    1 stream  2 lease  3 stats
-- ARGV    1 term  2 most to take  3 group  4 consumer
-- Answer  {'FOREIGN', taken or dropped, lowest of them or false} | {'LOST'} | {'NOGROUP'}
-- Flags   allow-oom: it only moves, and what a stranger holds keeps the stream from being trimmed.

if lost(KEYS[2], ARGV[1]) then
  return {'LOST'}
end
local stream, group, consumer = KEYS[1], ARGV[3], ARGV[4]
local max = require_count(ARGV[2], 0, MAX_ITEMS)
require_types(stream, 'stream', KEYS[3], 'hash')
local summary = try('XPENDING', stream, group)
if summary.err then
  if sub(summary.err, 1, 7) == 'NOGROUP' then
    return {'NOGROUP'}
  end
  error(summary)
end

local ids, lowest = {}, nil
for _, owner in ipairs(summary[4] or {}) do
  if owner[1] ~= consumer and #ids < max then
    for _, pending in ipairs(call('XPENDING', stream, group, '-', '+', whole(max - #ids), owner[1])) do
      ids[#ids + 1] = pending[1]
      if not lowest or pad(pending[1]) < pad(lowest) then
        lowest = pending[1]
      end
    end
  end
end
if #ids == 0 then
  return {'FOREIGN', 0, false}
end
local found = #ids
ids[found + 1] = 'JUSTID'
local taken = call('XCLAIM', stream, group, consumer, 0, unpack(ids))
if #taken < found then
  call('HINCRBY', KEYS[3], 'foreign-trimmed', whole(found - #taken))
end
return {'FOREIGN', found, lowest}
