"""The Lua calls that guard the pointer. Each touches one key, so that it also runs in a Cluster."""

CLAIM_COUNTER = """
local epoch = redis.call('INCR', KEYS[1])
if epoch <= tonumber(ARGV[1]) then
  epoch = tonumber(ARGV[1]) + 1
  redis.call('SET', KEYS[1], string.format('%d', epoch))
end
return epoch
"""
"""KEYS: the counter; ARGV: the stored pointer's epoch. Counts up, past that epoch even if the counter was lost."""

CLAIM_POINTER = """
local raw = redis.call('GET', KEYS[1])
if raw and cjson.decode(raw)['epoch'] < tonumber(ARGV[1]) then
  local stamped = string.gsub(raw, '("epoch"%s*:%s*)%d+', '%1' .. ARGV[1], 1)
  redis.call('SET', KEYS[1], stamped)
end
return 1
"""
"""KEYS: the pointer; ARGV: the new epoch. Fences the former owner before the new one has anything to publish.

Only the number is replaced, so that the pointer's other bytes stay as they were written.
"""

FLIP = """
local raw = redis.call('GET', KEYS[1])
local new = cjson.decode(ARGV[1])
if raw then
  local old = cjson.decode(raw)
  if old['epoch'] > new['epoch'] then return 'epoch ' .. string.format('%d', old['epoch']) end
  local stale = 'version ' .. string.format('%d', old['version'])
  if old['version'] == new['version'] then
    for _, name in ipairs({'writer', 'dim', 'buckets', 'head'}) do
      if old[name] ~= new[name] then return stale end
    end
  elseif old['version'] > new['version'] and old['writer'] == new['writer'] then
    return stale
  end
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('PUBLISH', ARGV[2], ARGV[1])
return 'ok'
"""
"""KEYS: the pointer; ARGV: the new pointer, the channel. Answers `ok`, or what stands against it (`version 42`)."""
