-- Put in front of every script, behind its first line. Each run makes these functions anew, so only what all need is here.

local MAX_ITEMS = 500
local MAX_READ_BYTES = 1024 * 1024

local call, try, find, match, sub, rep = redis.call, redis.pcall, string.find, string.match, string.sub, string.rep

local function whole(number)
  return string.format('%.0f', number)
end

-- nil, or why `key` cannot be used: it exists and has another type than `want`.
local function misfit(key, want)
  local found = call('TYPE', key).ok
  if found ~= want and found ~= 'none' then
    return 'the key ' .. key .. ' is a ' .. found .. ', not a ' .. want
  end
end

-- For keys that no item is to blame for. Arguments: key, type, key, type, …
local function require_types(...)
  local wanted = {...}
  for i = 1, #wanted, 2 do
    local why = misfit(wanted[i], wanted[i + 1])
    if why then
      error({err = 'WRONGTYPE ' .. why .. '; nothing was changed'})
    end
  end
end

local function require_count(text, least, most)
  local number = find(text, '^%d+$') and tonumber(text)
  if not number or number < least or number > most then
    error({err = 'ERR ' .. text .. ' is not between ' .. whole(least) .. ' and ' .. whole(most)})
  end
  return number
end

-- The fields of an entry, or of an XINFO answer, by name.
local function by_name(flat)
  local map = {}
  for i = 1, #flat, 2 do
    map[flat[i]] = flat[i + 1]
  end
  return map
end
