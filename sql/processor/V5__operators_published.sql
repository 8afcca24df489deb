-- Acts of operators leave this database, as events on OperatorTopic: whoever watches over operators needs no login here.
--
-- The client number and the states of the charge before and after stay: the charge's own events have what has changed.
grant select on parked_acts, resolutions, resolution_confirmations to coro_relay;
alter publication coro_events add table
    parked_acts (parked_id, act, operator, reason, outcome, acted_at),
    resolutions (
        resolution_id, payment_id, user_id, service_id, amount, evidence, provider_reference, code, operator, reason,
        proposed_at
    ),
    resolution_confirmations (resolution_id, proposed_by, operator, reason, outcome, confirmed_at);
