-- The weight of an instance: how much it can take beside the others, in percent, as each of its answers says (coro-weight).
-- A number that is none of 1 to 100 changes nothing.

core.register_action("weight", { "http-res" }, function(txn)
    local weight = tonumber((txn.sf:res_hdr("coro-weight") or ""):match("^%d%d?%d?$"))
    local backend = core.backends[txn.sf:be_name()]
    local server = backend and backend.servers[txn.sf:srv_name()]
    if server and weight and weight >= 1 and weight <= 100 and server:get_weight() ~= weight then
        server:set_weight(weight .. "%")
    end
end)
