-- A live worker tells of itself, or that it ends. Those that have told nothing for too long are left out and removed.
-- The first line, with its flags, is added in `store/workers.rs`.
--
-- KEYS    1 workers (hash)
-- ARGV    1 the worker   2 what it tells as JSON, or empty as it ends   3 how long that holds, in ms
-- answer  Redis' time in ms; of each live worker: its name here, when it told, what it tells

local worker, told, holds = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not holds or holds < 1 then return redis.error_reply('ERR a worker has bad arguments') end
local found = redis.call('TYPE', KEYS[1]).ok
if found ~= 'none' and found ~= 'hash' then
  return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' is a ' .. found .. ', not a hash')
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if told == '' then
  redis.call('HDEL', KEYS[1], worker)
else
  redis.call('HSET', KEYS[1], worker, string.format('%.0f', now) .. ' ' .. told)
  redis.call('EXPIRE', KEYS[1], math.ceil(holds / 1000))
end

local answer, all = {}, redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  local at, text = string.match(all[index + 1], '^(%d+) (.*)$')
  -- Redis' clock may have been set back: what is of the future is as old.
  if at and math.abs(now - tonumber(at)) <= holds then
    answer[#answer + 1] = {all[index], at, text}
  else
    redis.call('HDEL', KEYS[1], all[index])
  end
end
return {string.format('%.0f', now), answer}
