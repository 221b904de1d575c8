-- Shared by the scripts of the registry. Not a script of its own.
--
-- A failover can take changes back, and then another change gets a version that was given before. So each has a stamp, too: 64
-- random bits, written as 16 hex digits. `meta` notes it with its version, because a Herald from before there were stamps leaves
-- it as it is.

local NO_STAMP = '0000000000000000'

-- The stamp of the change that gave the registry this version, as `meta` notes it.
local function stamp_of(version, noted)
  local of, stamp = string.match(noted or '', '^(%d+) (%x+)$')
  return of == version and stamp or NO_STAMP
end

