-- Adds an entry to the audit log, which trims it: the beginning of an act by number, its end by age.
-- The first line, with its flags, is added in `store/audit.rs`.
--
-- KEYS    1 the audit log (stream)
-- ARGV    1 began or ended   2 the entry as JSON   3 how many entries are kept   4 for how long, in ms
-- answer  the entry's id
-- Redis trims whole nodes of a stream, so a few entries more stay; it does so in the same step, and needs no other right.

local what, entry, most, age = unpack(ARGV)
if what == 'began' and tonumber(most) then
  return redis.call('XADD', KEYS[1], 'MAXLEN', '~', most, '*', what, entry)
end
if what == 'ended' and tonumber(age) then
  local time = redis.call('TIME')
  local oldest = math.max(0, time[1] * 1000 + math.floor(time[2] / 1000) - tonumber(age))
  return redis.call('XADD', KEYS[1], 'MINID', '~', string.format('%.0f', oldest), '*', what, entry)
end
return redis.error_reply('ERR an entry of the audit log has bad arguments')
