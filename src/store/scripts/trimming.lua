-- Put behind partition_shared.lua in the scripts that trim a stream. An entry's id does not tell the time, because producers may
-- write what they like; so marks are kept of how far everybody was at which time of Redis' clock.

-- Bounds how long one call holds Redis. Whole nodes go first; only when less than half of it was used are the
-- finished entries of the one node that is left (100 entries by default) taken one by one.
local MAX_TRIM = 10000

-- Padded: the entry up to which everything was passed `retain` ago; nil while that is not known.
local function old_after(marks, now, retain, parts, padded)
  -- Redis' clock went back: marks that are in the future now go.
  call('ZREMRANGEBYSCORE', marks, '(' .. whole(now), '+inf')
  local newest = call('ZRANGE', marks, -1, -1, 'WITHSCORES')
  if newest[1] and newest[1] > padded then
    -- Another stream, or a group that was set back.
    call('DEL', marks)
    newest = {}
  end
  if not newest[1] or (newest[1] ~= padded and (now - newest[2]) * parts >= retain) then
    call('ZADD', marks, whole(now), padded)
  end
  local limit = whole(now - retain)
  local old = call('ZRANGE', marks, limit, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')
  if old[1] then
    call('ZREMRANGEBYSCORE', marks, '-inf', '(' .. old[2])
  end
  return old[1]
end

-- Everything before `least` goes. Returns how many entries.
local function trim_before(stream, places, least)
  call('ZREMRANGEBYLEX', places, '-', '(' .. pad(least))
  local count = call('XTRIM', stream, 'MINID', '~', least, 'LIMIT', MAX_TRIM)
  if count < MAX_TRIM / 2 then
    count = count + call('XTRIM', stream, 'MINID', '=', least)
  end
  return count
end
