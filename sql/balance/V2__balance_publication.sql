-- The contract of this database: ledger entries leave it; running balances do not (they follow from the entries).
create publication coro_events for table
    ledger (user_id, payment_id, phase, kind, amount, service_id, reason, traceparent, created_at),
    parked
with (publish = 'insert, update');
