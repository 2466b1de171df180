-- In one atomic step, stores one process's report about its requests, and reserves the moment of the process's next
-- request.
--
-- All times in arguments and results are durations in microseconds, so only the Redis server's clock is used.
--
-- KEYS  1 the limit's state (hash), 2 the requests that may be in the API's last window (sorted set; the score is the
--       time by which the API has counted the request), 3 the processes that share the limit (sorted set; the score is
--       the time of the process's last command)
-- ARGV  1 requests, 2 per, 3 jitter, 4 burst, 5 time for which keys are kept, 6 the process's id, 7 time after its last
--       command for which a process counts, 8 the generation that the process knows, 9 pause, 10 time since a refused
--       request was sent, 11 the id of the request to reserve a moment for; then pairs of a request's id and the time
--       until the API has counted the request (below 0: already counted; empty: the request will never be sent).
--       Each of the arguments 8 to 11 may be empty.
-- Returns  the time until the reserved moment (-1: no moment was reserved, because argument 11 was empty, or too many
--       permitted requests were not sent yet), the time until the end of the pause, the number of processes, the
--       generation

local requests, per, jitter, burst = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local keep, process, remembered, known = tonumber(ARGV[5]), ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local pause, refused, reserve = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[11]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- generation: when these keys were created; seen: the time of the last command; next: when the next request is due;
-- open: the end of the pause; over: the end of the last incident, i.e. series of refusals; slow: when the full rate is
-- reached again; penalty: the length of the last pause for an incident. LocalLimiter stores the last five fields, too.
local fields = {'generation', 'seen', 'next', 'open', 'over', 'slow', 'penalty'}
local stored = redis.call('HMGET', KEYS[1], unpack(fields))
local state = {}
for index, field in ipairs(fields) do
  state[field] = tonumber(stored[index]) or 0
end

-- If the server's clock was set back, e.g. by a failover to another host, delete the data. Otherwise all processes
-- would wait until the clock has reached the old times.
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

-- The generation has changed, so this server is new or has lost its data. Wait until the requests that were permitted
-- before the change have left the window.
if known and known ~= state.generation then
  state.open = math.max(state.open, state.generation + per + jitter)
end

local interval = (per + jitter) / requests / pace()
for index = 12, #ARGV, 2 do
  local by = tonumber(ARGV[index + 1])
  if by then
    redis.call('ZADD', KEYS[2], now + by, ARGV[index])
  elseif redis.call('ZREM', KEYS[2], ARGV[index]) == 1 then
    -- The request will not be sent, so later requests are due earlier by one interval.
    state.next = state.next - interval
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - per)

local wait = -1
if reserve ~= '' then
  local ahead = pace() < 1 and 0 or burst - 1
  local at = math.max(now, state.open, state.next - ahead * interval)
  -- The script also counts the requests, because even intervals alone do not keep the limit if processes send bursts,
  -- or send requests later than at the reserved moments.
  local count, unsent = redis.call('ZCARD', KEYS[2]), false
  if count >= requests then
    local oldest = tonumber(redis.call('ZRANGE', KEYS[2], count - requests, count - requests, 'WITHSCORES')[2])
    -- A time later than any reserved moment means that the request was not sent yet, and may be sent at any time.
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
