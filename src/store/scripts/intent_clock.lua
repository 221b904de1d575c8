#!lua flags=allow-oom
-- Moves the intents' clock.
-- KEYS    1 clock  2 deadlines
-- ARGV    1 'speed' and 2 the new speed
--         1 'advance' and 2 µs to go on, or 'to' and 2 an instant: the clock stops and has a target
--         1 'step': goes to the next deadline before the target, or to the target, and runs on from there
-- Answer  {now µs, 'ON'}: it runs, or stands still as it was told to
--         {now µs, 'UNDER_WAY'}: it has a target; what is due now comes first
--         {now µs, 'BACK'}: it never goes back; {now µs, 'FAR'}: nor past the year 2200
-- Flags   allow-oom: it writes a few numbers.

require_types(KEYS[1], 'hash', KEYS[2], 'zset')
local now = read_clock(KEYS[1])
local target, resume, speed = unpack(call('HMGET', KEYS[1], 'target', 'resume', 'speed'))

local function set(instant, new_speed)
  now = instant
  call('HSET', KEYS[1], 'virtual', whole(instant), 'real', whole(real_micros()), 'speed', new_speed)
end

local what, value = ARGV[1], ARGV[2]
if what == 'speed' then
  local wanted = tonumber(value)
  if not wanted or wanted < 0 or wanted > 1000000 then
    error({err = 'ERR the speed ' .. value .. ' is not between 0 and 1000000'})
  end
  if target then
    call('HSET', KEYS[1], 'resume', value)
    return {whole(now), 'UNDER_WAY'}
  end
  set(now, value)
  return {whole(now), 'ON'}
elseif what == 'advance' or what == 'to' then
  local to = require_count(value, 0, 9007199254740991)
  to = what == 'advance' and now + to or to
  if to > MAX_MICROS then
    return {whole(now), 'FAR'}
  elseif to < now then
    return {whole(now), 'BACK'}
  end
  -- Two who advance at once get as far as the one who goes further.
  to = math.max(to, tonumber(target or 0))
  set(now, '0')
  call('HSET', KEYS[1], 'target', whole(to), 'resume', resume or speed or '1')
  return {whole(now), 'UNDER_WAY'}
elseif what == 'step' then
  if not target then
    return {whole(now), 'ON'}
  end
  local first = call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2]
  if first and tonumber(first) <= tonumber(target) then
    set(math.max(now, tonumber(first)), '0')
    return {whole(now), 'UNDER_WAY'}
  end
  set(math.max(now, tonumber(target)), resume or '1')
  call('HDEL', KEYS[1], 'target', 'resume')
  return {whole(now), 'ON'}
end
error({err = 'ERR ' .. what .. ' is nothing that a clock does'})
