-- Put behind shared.lua and partition_shared.lua in the scripts of operations. An operation is a hash: its plan, its state, and
-- how many it has taken and what became of them. Its `taken` are its `open`, `done`, `refused`, `dead_again` and `overtaken`.

-- Exceptions that are kept of one operation; roughly, because Redis trims whole nodes.
local MAX_EXCEPTIONS = '10000'

-- What may be dropped in one call, so that none holds Redis for long after a limit was lowered.
local MAX_FORGOTTEN = 20

-- How many a second, which may be less than one.
local function require_rate(text)
  local rate = #text <= 20 and find(text, '^%d+%.?%d*$') and tonumber(text)
  if not rate or rate <= 0 or rate > 1e6 then
    error({err = 'ERR ' .. sub(text, 1, 64) .. ' is no rate; nothing was changed'})
  end
  return text
end

local function forget_operation(prefix, id)
  call('DEL', prefix .. 'operation:' .. id, prefix .. 'operation-endpoints:' .. id, prefix .. 'operation-results:' .. id,
    prefix .. 'operation-ids:' .. id)
end

-- Of a set of operations by time, keeps the newest.
local function keep_newest(prefix, set, most)
  local surplus = math.min(call('ZCARD', set) - most, MAX_FORGOTTEN)
  if surplus > 0 then
    for _, id in ipairs(call('ZRANGE', set, 0, whole(surplus - 1))) do
      forget_operation(prefix, id)
      call('ZREM', set, id)
    end
  end
end

-- It has ended, and nobody works on it any more.
local function close_operation(prefix, id, most)
  call('ZREM', prefix .. 'operations-open', id)
  call('ZADD', prefix .. 'operations-ended', whole(now_ms()), id)
  call('DEL', prefix .. 'operation-endpoints:' .. id, prefix .. 'operation-ids:' .. id)
  keep_newest(prefix, prefix .. 'operations-ended', most)
end

local function count_in(key, name)
  return tonumber(call('HGET', key, name) or 0) or 0
end

local MAX_WHY_BYTES = 300

-- The beginning of a text, without a part of a letter: what is no UTF-8 cannot be read again.
local function beginning(text)
  local first = sub(text, 1, MAX_WHY_BYTES)
  return find(text, '^[\128-\191]', MAX_WHY_BYTES + 1) and match(first, '^(.-)[\192-\255]?[\128-\191]*$') or first
end

-- One that it took has ended. What was not simply done is kept by itself.
local function book(prefix, id, delivery, result, why)
  call('HINCRBY', prefix .. 'operation:' .. id, result, 1)
  if result ~= 'done' then
    call('XADD', prefix .. 'operation-results:' .. id, 'MAXLEN', '~', MAX_EXCEPTIONS, '*', 'delivery', delivery, 'result', result,
      'why', beginning(why), 'at', whole(now_ms()))
  end
end
