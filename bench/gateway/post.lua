-- wrk's script: POSTs the bodies of the files that it is given, by turns, and ends with one line of JSON.
-- A body that holds @NUMBER@ gets another number each time, so that no two requests are the same.
local bodies, count, turn, base = {}, 0, 0, 0

function init(arguments)
  for index = 1, #arguments do
    local file = assert(io.open(arguments[index], "rb"))
    count = count + 1
    bodies[count] = file:read("*a")
    file:close()
  end
  base = os.time() % 100000
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer sk-bench"
  for index = 1, count do
    if not bodies[index]:find("@NUMBER@", 1, true) then
      bodies[index] = {whole = wrk.format(nil, "/v1/chat/completions", nil, bodies[index])}
    else
      bodies[index] = {template = bodies[index]}
    end
  end
end

function request()
  turn = turn + 1
  local body = bodies[turn % count + 1]
  if body.whole then return body.whole end
  local number = string.format("%d-%d", base, turn)
  return wrk.format(nil, "/v1/chat/completions", nil, (body.template:gsub("@NUMBER@", number)))
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %.6f, "errors": %d, "p50": %.6f, "p99": %.6f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
