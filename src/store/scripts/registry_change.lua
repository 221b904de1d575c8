-- Shared by the scripts that change the registry, which are appended to it. Not a script of its own.
--
-- KEYS  1 endpoints (hash)   2 meta (hash)   3 change feed (stream)
-- ARGV  1 id for a registry that does not exist yet   2 by   3 why   4 at_ms   5 length of the feed   6 stamp
--
-- A version is Redis' time in ms, or one more than the last where that is larger: so a registry that was wiped and
-- restored never gives a version twice. It is also the id of the change's entry in the feed.

local function wrong_type()
  for index, expected in ipairs({ 'hash', 'hash', 'stream', 'hash' }) do
    if KEYS[index] then
      local found = redis.call('TYPE', KEYS[index]).ok
      if found ~= 'none' and found ~= expected then
        return redis.error_reply('WRONGTYPE ' .. KEYS[index] .. ' is a ' .. found .. ', not a ' .. expected)
      end
    end
  end
  local stamp = ARGV[6] or ''
  if ARGV[1] == '' or not tonumber(ARGV[4]) or not tonumber(ARGV[5]) or #stamp ~= 16 or string.find(stamp, '%X') then
    return redis.error_reply('ERR a change of the registry has bad arguments')
  end
end

-- What is wrong with the registry, or nil. Without its meta data it must have no endpoints; with it, as many as it says.
local function damage()
  local id, count = unpack(redis.call('HMGET', KEYS[2], 'id', 'count'))
  local endpoints = redis.call('HLEN', KEYS[1])
  if not id and endpoints > 0 then
    return 'it has ' .. endpoints .. ' endpoints but no id'
  end
  if id and tonumber(count) ~= endpoints then
    return 'it should have ' .. tostring(count) .. ' endpoints but has ' .. endpoints
  end
end

-- The last change, as whoever has seen it writes it.
local function last_change()
  local version, noted = unpack(redis.call('HMGET', KEYS[2], 'version', 'stamp'))
  version = version or '0'
  return version .. ' ' .. stamp_of(version, noted)
end

-- Announces the change and gives the registry its new version, and its id if it has none. Call it before any other
-- write: if the feed refuses the entry, everything is left as it was. Returns the version.
local function announce(kind, endpoint)
  local id, last = unpack(redis.call('HMGET', KEYS[2], 'id', 'version'))
  local time = redis.call('TIME')
  local version = math.max(tonumber(last or 0) + 1, time[1] * 1000 + math.floor(time[2] / 1000))
  version, last = string.format('%.0f', version), last or '0'
  if not id then
    redis.call('DEL', KEYS[3])
  end
  redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[5], version .. '-0',
    'after', last, 'kind', kind, 'endpoint', endpoint, 'by', ARGV[2], 'why', ARGV[3], 'at_ms', ARGV[4], 'stamp', ARGV[6])
  redis.call('HSET', KEYS[2], 'version', version, 'stamp', version .. ' ' .. ARGV[6])
  redis.call('HSETNX', KEYS[2], 'id', ARGV[1])
  redis.call('HSETNX', KEYS[2], 'count', 0)
  return version
end

local function count()
  redis.call('HSET', KEYS[2], 'count', redis.call('HLEN', KEYS[1]))
end

