-- One process reports what became of its requests, and reserves the moment of its next one, in one atomic step.
--
-- Every time that goes in or out is a duration, in microseconds: the only clock is this server's.
--
-- KEYS  1 the limit's state (hash), 2 the requests that may lie in the API's last window (sorted set: by when the API
--       has counted them), 3 the processes that share the limit (sorted set: by their last command)
-- ARGV  1 requests, 2 per, 3 jitter, 4 burst, 5 how long keys are kept, 6 process, 7 how long a silent process counts,
--       8 the generation that the process knows, 9 pause, 10 how long ago a refused request was sent, 11 the request to
--       reserve a moment for, then pairs: a request, and the time until the API has counted it (below 0: it already has;
--       empty: the request will never be sent)
--       Each of 8 to 11 may be empty.
-- Returns  the time until the reserved moment (-1: none was reserved, as none was asked for, or as too many granted
--       requests have not left), the time until the end of the pause, the number of processes, the generation

local requests, per, jitter, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local keep, process, remembered, known = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local pause, refused, reserve = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- next: when the next request is due; open: the end of the pause; over: the end of the last incident of refusals; slow:
-- when the pace will be full again; penalty: the last pause for an incident. LocalLimiter keeps the same.
local fields = {'generation', 'seen', 'next', 'open', 'over', 'slow', 'penalty'}
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
local state = {}
for index, field in ipairs(fields) do
  state[field] = tonumber(stored[index]) or 0
end

-- If the clock went back, as after a failover to another host, all processes would wait until it has caught up.
if state.seen > now + per then
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  state = {generation = 0, next = 0, open = 0, over = 0, slow = 0, penalty = 0}
end
if state.generation == 0 then
  state.generation = now
end
state.seen = now

redis.call('ZADD', KEYS[3], now, process)
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - remembered)

local function pace()
  return math.min(1, 1 - (state.slow - math.max(now, state.over)) / 1000000 * 0.02)
end

if pause then
  state.open = math.max(state.open, now + math.min(pause, 60000000))
end
if refused then
  if now - refused > state.over then
    if now < state.over + 2 * per then
      state.penalty = math.min(8000000, state.penalty * 2)
    else
      state.penalty = per
    end
    local cut = math.max(0.1, pace() * 0.7)
    state.open = math.max(state.open, now + state.penalty)
    state.over = now
    state.slow = now + (1 - cut) / 0.02 * 1000000
  end
  local longer = math.max(0, state.open - state.over)
  state.over = state.over + longer
  state.slow = state.slow + longer
end

-- This server is new, or has lost its data: what was granted just before has to leave the window.
if known and known ~= state.generation then
  state.open = math.max(state.open, state.generation + per + jitter)
end

local interval = (per + jitter) / requests / pace()
for index = 12, #ARGV, 2 do
  local by = tonumber(ARGV[index + 1])
  if by then
    redis.call('ZADD', KEYS[2], now + by, ARGV[index])
  elseif redis.call('ZREM', KEYS[2], ARGV[index]) == 1 then
    -- The moment is lost, but later requests may be due earlier.
    state.next = state.next - interval
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - per)

local wait = -1
if reserve ~= '' then
  local ahead = pace() < 1 and 0 or burst - 1
  local at = math.max(now, state.open, state.next - ahead * interval)
  -- The guard keeps the window even if there are bursts and late requests.
  local count, unsent = redis.call('ZCARD', KEYS[2]), false
  if count >= requests then
    local oldest = tonumber(redis.call('ZRANGE', KEYS[2], count - requests, count - requests, 'WITHSCORES')[2])
    -- Later than any reserved moment: the request has not left, and it is unknown when it will.
    unsent = oldest > math.max(now, state.next) + jitter
    at = math.max(at, oldest + per)
  end
  if not unsent then
    state.next = math.max(state.next, at) + interval
    redis.call('ZADD', KEYS[2], at + jitter, reserve)
    wait = math.ceil(at - now)
  end
end

local changed = {}
for _, field in ipairs(fields) do
  table.insert(changed, field)
  table.insert(changed, state[field])
end
redis.call('HSET', KEYS[1], unpack(changed))
for _, key in ipairs(KEYS) do
  redis.call('PEXPIRE', key, math.ceil(keep / 1000))
end
return {wait, math.max(0, math.ceil(state.open - now)), redis.call('ZCARD', KEYS[3]), state.generation}
