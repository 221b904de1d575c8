#!lua flags=no-writes
-- Whether the stream or the inbox has anything after what was read. Redis then remembers both keys for the connection
-- that asked, and says once when one of them changes. The bodies stay in the server.
-- KEYS    1 stream  2 inbox
-- ARGV    1 last entry read  2 last request read
-- Answer  {entries 0 or 1, requests 0 or 1}
-- Flags   no-writes.

local answer = {0, 0}
local seen = redis.call('XREAD', 'COUNT', 1, 'STREAMS', KEYS[1], KEYS[2], ARGV[1], ARGV[2])
for _, one in ipairs(seen or {}) do
  answer[one[1] == KEYS[1] and 1 or 2] = 1
end
return answer
