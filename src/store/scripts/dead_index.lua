-- Put behind shared.lua in the scripts that change dead letters. A letter stands in all of its indexes or in none, and its
-- line in dead-facts says in which: `AT FACTS`, with FACTS as LetterFacts writes them. Letters of an older Herald have no
-- line until they are indexed.
-- The last three of a script's own KEYS are those that all letters share.
local dead_facts, dead_kinds, dead_names = unpack(KEYS, #KEYS - 3, #KEYS - 1)
local FACTS = '^([%w_-]*) ([%l_]+) ([%l%d_:]+) %d+ ([%w_-]*) ([%w_-]*)'

-- nil if nothing that Herald writes, else what the indexes need of it. `kind` names its set of letters of one account,
-- endpoint, reason and cause; `why` that of one reason and cause.
local function dead_facts_of(text, endpoint)
  local account, reason, cause, event, intent = match(text, FACTS)
  if not account then
    return nil
  end
  local why = reason .. ':' .. cause
  return {text = text, account = account, endpoint = endpoint, why = why, kind = account .. ':' .. endpoint .. ':' .. why,
    event = event, intent = intent}
end

-- The same of what stands in dead-facts, and the time in front of it.
local function dead_line_of(line, endpoint)
  local at, text = match(line or '', '^(%d+) (.*)$')
  return text and dead_facts_of(text, endpoint), at
end

-- The sets by time that a letter stands in besides `dead` and `dead:EP`: of its kind, of its account for this reason and
-- cause, and of everybody's for these.
local function dead_sets(prefix, facts)
  return prefix .. 'dead-of:' .. facts.kind, prefix .. 'dead-account:' .. facts.account .. ':' .. facts.why,
    prefix .. 'dead-by:' .. facts.why
end

-- The sets of kinds are named twice, so that those of an account and those of an endpoint each lie together.
local function dead_kinds_of(facts)
  return 'a:' .. facts.kind, 'e:' .. facts.endpoint .. ':' .. facts.account .. ':' .. facts.why
end

-- The members of dead-names: by its intent and by its event, as far as they are known.
local function dead_names_of(facts, id)
  local names = {}
  if facts.intent ~= '' then
    names[1] = 'i:' .. facts.intent .. ' ' .. id
  end
  if facts.event ~= '' then
    names[#names + 1] = 'e:' .. facts.event .. ' ' .. id
  end
  return names
end

-- A stranger's key where a set should be does not keep a letter from leaving: whatever is left of it there leads nowhere.
local function unindex_dead(prefix, id, facts)
  local of, account, by = dead_sets(prefix, facts)
  try('ZREM', of, id)
  try('ZREM', account, id)
  try('ZREM', by, id)
  if call('EXISTS', of, account, by) < 3 then
    if call('EXISTS', of) == 0 then
      call('ZREM', dead_kinds, dead_kinds_of(facts))
    end
    if call('EXISTS', account) == 0 then
      call('ZREM', dead_kinds, 'b:' .. facts.account .. ':' .. facts.why)
    end
    if call('EXISTS', by) == 0 then
      call('ZREM', dead_kinds, 'w:' .. facts.why)
    end
  end
  local names = dead_names_of(facts, id)
  if names[1] then
    call('ZREM', dead_names, unpack(names))
  end
  call('HDEL', dead_facts, id)
end

local function require_dead_types()
  require_types(dead_facts, 'hash', dead_kinds, 'zset', dead_names, 'zset')
end
