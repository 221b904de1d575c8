-- Put behind partition_shared.lua in the scripts that look at entries to pass them on.
-- An entry has a head and a text. The head is its id, alone where it has one field `event` and nothing else; its text is then that
-- field's value
-- or id:length,length,… of names and values in turn, which its text has one behind the other
-- or id:lengths:place or id:lengths:place:endpoint, with lengths that may be empty: see `read.lua`

-- Of an entry that is too large or has too many fields for one call, what Herald reads: the first of each of these, cut.
local function reduced(fields, limits)
  local kept, seen = {}, {}
  for i = 1, #fields, 2 do
    local name = fields[i]
    if not seen[name] and (name == 'event' or name == 'traceparent' or name == 'account-sequence') then
      seen[name] = true
      kept[#kept + 1], kept[#kept + 2] = name, sub(fields[i + 1], 1, limits.value)
    end
  end
  return kept[1] and kept or {sub(fields[1], 1, limits.value), sub(fields[2], 1, limits.value)}
end

-- Its head and its text. `places` is false where there are none. `limits`: the longest `value` of an entry that is not passed on as
-- it is, and how many `bytes` and `fields` such an entry has more than.
local function packed(id, fields, places, limits)
  local place, only
  if places then
    place, only = place_in(places, id)
  end
  local function is_plain()
    return #fields == 2 and fields[1] == 'event' and #fields[2] <= limits.bytes
  end
  local lengths, text = '', nil
  if not is_plain() then
    text = #fields <= 2 * limits.fields and table.concat(fields)
    if not text or #text > limits.bytes then
      fields = reduced(fields, limits)
      text = table.concat(fields)
    end
  end
  if is_plain() then
    text = fields[2]
  else
    local all = {}
    for i = 1, #fields do
      all[i] = whole(#fields[i])
    end
    lengths = table.concat(all, ',')
  end
  if place then
    return id .. ':' .. lengths .. ':' .. place .. (only and ':' .. only or ''), text
  elseif lengths ~= '' then
    return id .. ':' .. lengths, text
  end
  return id, text
end
