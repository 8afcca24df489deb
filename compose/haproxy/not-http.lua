-- Whether a connection begins with an HTTP request, and what HAProxy answers, in a problem document, where it does not.

-- Heads are smaller than the buffer that holds them (tune.bufsize).
local HEAD_BYTES_MAX = 30000

-- Of what has come so far: "http" is a whole head, "broken" will never be one, "partial" may become one.
core.register_fetches("beginning", function(txn)
    local head = (txn.f:req_payload(0, 0) or ""):gsub("^[\r\n]+", "")
    local line = head:match("^(.-)\r?\n")
    -- HAProxy takes a line without a version for HTTP/0.9, and then does not want it after all.
    if line and not line:match("^[!#$%&'*+%-.^_`|~%w]+ [^ ]+ HTTP/%d%.%d$") then
        return "broken"
    end
    if txn.f:req_proto_http() then
        return "http"
    end
    local controls = not line and head:match("[%z\1-\9\11\12\14-\31\127]")
    if #head > HEAD_BYTES_MAX or head:find("\n\r?\n") or controls then
        return "broken"
    end
    return "partial"
end)

-- The documents are whole, so that the test that compares them with those of the services finds them.
local function answer(status, document)
    return function(applet)
        -- As the answers to requests have one; no log names it.
        local id = applet.f:uuid()
        local body = document:format(id)
        local lines = {
            "HTTP/1.1 " .. status,
            "content-type: application/problem+json",
            "content-length: " .. #body,
            "request-id: " .. id,
            "cache-control: no-store",
            "connection: close",
        }
        applet:send(table.concat(lines, "\r\n") .. "\r\n\r\n" .. body)
    end
end

core.register_service("not-http", "tcp", answer("400 Bad Request",
    '{"type":"urn:coro:problem:malformed","title":"The request cannot be read.","status":400,"detail":"The request is not valid HTTP.","request_id":"%s"}'))

core.register_service("too-late", "tcp", answer("408 Request Timeout",
    '{"type":"urn:coro:problem:timeout","title":"The request did not arrive in time.","status":408,"detail":"The head did not arrive in time.","request_id":"%s"}'))
