-- Adds a chunk of an import to its staging hash.
--
-- KEYS    1 staging (hash)
-- ARGV    1 TTL in seconds   2… endpoint's id, its JSON, and so on, at most 500 pairs
-- answer  number of endpoints staged so far

local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'none' and found ~= 'hash' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is a ' .. found .. ', not a hash')
end
local ttl = tonumber(ARGV[1])
if not ttl or ttl < 1 or #ARGV < 3 or #ARGV > 1001 or #ARGV % 2 == 0 then
  return redis.error_reply('ERR a chunk of an import has bad arguments')
end
for index = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[index], ARGV[index + 1])
end
redis.call('EXPIRE', KEYS[1], ttl)
return redis.call('HLEN', KEYS[1])
