#!lua flags=allow-oom
-- Appends a request to the inbox, unless too many wait already.
-- KEYS    1 inbox
-- ARGV    1 most that may wait, then the fields and values of the request
-- Answer  the request's id | the number that wait, when it was not appended
-- Flags   allow-oom: on a full Redis an operator discards and releases to make room, and the number is bounded.

local waiting = redis.call('XLEN', KEYS[1])
if waiting >= tonumber(ARGV[1]) then
  return waiting
end
return redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
