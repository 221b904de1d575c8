#!lua flags=no-writes
-- Looks at an endpoint's backlog after an entry. Nothing moves: only a settle takes from a backlog.
-- KEYS    1 lease
-- ARGV    1 term  2 prefix of this partition's keys  3 endpoint  4 entry id, itself excluded  5 most to return
-- Answer  {'BACKLOG', now ms, id, record or false, id, …} | {'LOST'}
-- Flags   no-writes.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
local endpoint, max = ARGV[3], require_count(ARGV[5], 0, MAX_ITEMS)
local ids = call('ZRANGEBYLEX', ARGV[2] .. 'backlog:' .. endpoint, '(' .. pad(ARGV[4]), '+', 'LIMIT', 0, whole(max))
for i = 1, #ids do
  ids[i] = unpad(ids[i]) .. ':' .. endpoint
end
return {'BACKLOG', now_ms(), unpack(with_records(ARGV[2], ids))}
