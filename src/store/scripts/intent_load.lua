#!lua flags=no-writes
-- Looks at an intent, the time, and the answer that an idempotency key was given.
-- KEYS    1 record  2 clock  3 idempotency key, optional
-- Answer  {the stamp of a change of now µs, record or '', answer or ''}
-- Flags   no-writes.

local now = next_stamp(KEYS[2])
local repeated = KEYS[3] and call('GET', KEYS[3])
return {whole(now), call('GET', KEYS[1]) or '', repeated or ''}
