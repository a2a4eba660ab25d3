-- Posts bodies in turn, and prints what `benchmarks/wrk.py` reads. Arguments: the bodies' content type and their files.

local requests, last = {}, 0

function init(arguments)
    local headers = { ["Content-Type"] = arguments[1] }
    local key = os.getenv("TAILSTACK_API_KEY")
    if key and key ~= "" then
        headers["X-API-Key"] = key
    end
    for number = 2, #arguments do
        local file = assert(io.open(arguments[number], "rb"))
        table.insert(requests, wrk.format("POST", nil, headers, file:read("*a")))
        file:close()
    end
end

function request()
    last = last % #requests + 1
    return requests[last]
end

-- wrk counts in microseconds.
function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "seconds": %f, "p50_ms": %f, "p90_ms": %f, "p99_ms": %f, "bad_status": %d, "broken": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
        latency:percentile(99) / 1e3, errors.status, errors.connect + errors.read + errors.write + errors.timeout
    ))
end
