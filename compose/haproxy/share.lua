-- The share of an instance: how much it can take beside the others, in percent, as each of its answers says (coro-share).
-- It becomes the instance's weight here. A number that is none of 1 to 100 changes nothing.

core.register_action("share", { "http-res" }, function(txn)
    local share = (txn.sf:res_hdr("coro-share") or ""):match("^%d%d?%d?$")
    local backend = core.backends[txn.sf:be_name()]
    local server = backend and backend.servers[txn.sf:srv_name()]
    share = tonumber(share)
    if server and share and share >= 1 and share <= 100 and server:get_weight() ~= share then
        server:set_weight(share .. "%")
    end
end)
