-- The contract of this database: charges, so that their outcomes can be told. Leases and call details stay.
create publication coro_events for table
    charges (
        payment_id, user_id, client_number, service_id, amount, status, attempt, reason, version,
        provider_reference, traceparent, expires_at, created_at, decided_at
    ),
    parked
with (publish = 'insert, update');
