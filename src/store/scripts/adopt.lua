#!lua
-- Gives unfinished deliveries and dead letters of a stream to one of its parts, before that has an owner. What is read here is only
-- this: all else is `settle.lua`, whose place this script has, with the gate and its token for the lease and its term.
-- KEYS    as those of `settle.lua`, but  2 gate
-- ARGV    as those of `settle.lua`, but  1 token of the split; items are take and take-letter, without acknowledgements and lines
-- Answer  as those of `settle.lua`; {'LOST'} if the gate is gone, or another split's: nothing is taken
-- Flags   none: it must not fill the node of a part that is full. Whoever hands over waits until there is room.
