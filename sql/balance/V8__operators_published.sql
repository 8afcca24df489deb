-- Acts of operators leave this database, as events on OperatorTopic: whoever watches over operators needs no login here.
grant select on parked_acts to coro_relay;
alter publication coro_events add table parked_acts (parked_id, act, operator, reason, outcome, acted_at);
