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

local function answer(status, reason, kind, title, detail)
    return function(applet)
        -- As the answers to requests have one; no log names it.
        local id = applet.f:uuid()
        local document = ('{"type":"urn:coro:problem:%s","title":"%s","status":%d,"detail":"%s","request_id":"%s"}'):format(
            kind, title, status, detail, id)
        local lines = {
            "HTTP/1.1 " .. status .. " " .. reason,
            "content-type: application/problem+json",
            "content-length: " .. #document,
            "request-id: " .. id,
            "cache-control: no-store",
            "connection: close",
        }
        applet:send(table.concat(lines, "\r\n") .. "\r\n\r\n" .. document)
    end
end

core.register_service("not-http", "tcp",
    answer(400, "Bad Request", "malformed", "The request cannot be read.", "The request is not valid HTTP."))

core.register_service("too-late", "tcp",
    answer(408, "Request Timeout", "timeout", "The request did not arrive in time.", "The head did not arrive in time."))
