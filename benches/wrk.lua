-- For wrk: asks for the paths listed in a file, in turn; prints one JSON line.
--   wrk ... -s wrk.lua URL -- <file of request paths>
local requests, turn = {}, 0
function init(args)
  for line in io.lines(args[1]) do requests[#requests + 1] = wrk.format("GET", line) end
end
function request()
  turn = turn % #requests + 1
  return requests[turn]
end
function done(sum, latency, _)
  local e = sum.errors
  print(string.format('{"requests":%d,"bytes":%d,"us":%d,"p50_us":%g,"statuses":%d,"broken":%d}', sum.requests,
    sum.bytes, sum.duration, latency:percentile(50), e.status, e.connect + e.read + e.write + e.timeout))
end
