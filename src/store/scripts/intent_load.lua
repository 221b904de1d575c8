#!lua flags=no-writes
-- Looks at an intent, the time, and the answer that an idempotency key was given.
-- KEYS    1 record  2 clock  3 idempotency key, optional
-- ARGV    1 start of the records' keys
-- Answer  {the stamp of a change of now µs, record or '', answer or ''}
-- Flags   no-writes.

local now = next_stamp(KEYS[2])
local repeated = KEYS[3] and answer_of(KEYS[3], ARGV[1])
return {whole(now), call('GET', KEYS[1]) or '', repeated or ''}
