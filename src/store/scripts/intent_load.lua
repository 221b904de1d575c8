#!lua flags=no-writes
-- Looks at intents, the time, and the answers that idempotency keys were given.
-- KEYS    1 clock, then the record of each look, then the idempotency key of each that has one
-- ARGV    1 start of the records' keys, then of each look 'key' or '', whether it has one
-- Answer  {the stamp of a change of now µs, {of each look {record or '', answer or ''} or {what it fails by}}}
-- Flags   no-writes.

local PREFIX, LOOKS = ARGV[1], #ARGV - 1
local now, answers = next_stamp(KEYS[1]), {}
local records = call('MGET', unpack(KEYS, 2, 1 + LOOKS))

local function look(at, answer_key)
  -- What is of another type is not among them.
  local why = not records[at] and misfit(KEYS[1 + at], 'string')
  if why then
    error({err = 'WRONGTYPE ' .. why})
  end
  return {records[at] or '', answer_key and answer_of(answer_key, PREFIX) or ''}
end

local keys = 1 + LOOKS
for at = 1, LOOKS do
  local answer_key
  if ARGV[1 + at] ~= '' then
    keys = keys + 1
    answer_key = KEYS[keys]
  end
  local done, answer = pcall(look, at, answer_key)
  answers[at] = done and answer or {type(answer) == 'table' and answer.err or answer}
end
return {whole(now), answers}
