#!lua flags=allow-oom
-- Gives the lease back, so that the next owner need not wait for its end. Who has asked for the partition stays noted: for a moment
-- nobody else can have it.
-- KEYS    1 lease
-- ARGV    1 term
-- Answer  {'RELEASED'} | {'LOST'}
-- Flags   allow-oom: it only frees.

if lost(KEYS[1], ARGV[1]) then
  return {'LOST'}
end
call('DEL', KEYS[1])
return {'RELEASED'}
