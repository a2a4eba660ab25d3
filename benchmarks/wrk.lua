-- Posts one body, and prints what `benchmarks/wrk.py` reads. Arguments: the body's content type and its file.

function init(arguments)
    wrk.method = "POST"
    wrk.headers["Content-Type"] = arguments[1]
    local file = assert(io.open(arguments[2], "rb"))
    wrk.body = file:read("*a")
    file:close()
end

-- wrk counts in microseconds.
function done(summary, latency, requests)
    local errors = summary.errors
    io.write(string.format(
        '{"requests": %d, "seconds": %f, "p50_ms": %f, "p99_ms": %f, "bad_status": %d, "broken": %d}\n',
        summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
        errors.status, errors.connect + errors.read + errors.write + errors.timeout
    ))
end
