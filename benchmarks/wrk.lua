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

-- wrk counts in microseconds; of latencies it keeps how many answers took each number of them.
function done(summary, latency)
    local cpu, latencies, errors = os.clock(), {}, summary.errors
    for number = 1, #latency do
        latencies[number] = string.format("[%d, %d]", latency(number))
    end
    io.write(string.format(
        '{"requests": %d, "duration_us": %d, "cpu_seconds": %f, "bad_status": %d, "broken": %d, "latencies_us": [%s]}\n',
        summary.requests, summary.duration, cpu, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout, table.concat(latencies, ", ")
    ))
end
