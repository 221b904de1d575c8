-- Put between `shared.lua` and every script of payment intents: their clock.
--
-- The clock is a hash: `virtual` and `real`, the instant that it showed at an instant of the server's clock; `speed`, how
-- fast it runs; `last`, the last stamp that was given; `target` and `resume`, an advance that is under way and the speed
-- afterwards. All instants are microseconds since 1970. Without `virtual` it is the server's clock.

-- The year 2200. Numbers of Lua count microseconds exactly until 2255.
local MAX_MICROS = 7258118400000000

-- What a command reads, or wrote first. A key of a foreign type fails it, and only then is worth another look.
local function take(want, command, key, ...)
  local found = try(command, key, ...)
  if type(found) == 'table' and found.err then
    require_types(key, want)
    error(found)
  end
  return found
end

local function real_micros()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end

-- The instant that the clock shows, never before the last stamp; and that stamp.
local function read_clock(key)
  local real = real_micros()
  local virtual, since, speed, last = unpack(take('hash', 'HMGET', key, 'virtual', 'real', 'speed', 'last'))
  local now = real
  if virtual then
    -- A server's clock that was set back does not turn this one back.
    now = tonumber(virtual) + math.floor(math.max(real - tonumber(since), 0) * tonumber(speed))
  end
  last = tonumber(last or 0)
  return math.min(math.max(now, last), MAX_MICROS), last
end

-- The stamp that a change of now would get. Whoever looks at deadlines must ask for no other time: one more change at a clock
-- that stands still, and it is later than it shows.
local function next_stamp(key)
  local now, last = read_clock(key)
  return math.max(now, last + 1)
end

local function require_micros(text)
  return require_count(text, 0, MAX_MICROS)
end

-- What a request with this idempotency key led to. A key ends with its intent: what was forgotten is not answered again.
local function answer_of(key, prefix)
  local kept = take('string', 'GET', key)
  local id = kept and match(kept, '^[^\n]*\n([^\n]*)\n')
  return (not id or call('EXISTS', prefix .. id) == 1) and kept or nil
end
