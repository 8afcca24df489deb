-- The contract of this database: the tables and columns that leave it, and nothing else.
-- The idempotency key and the fingerprint stay: they are between the client and payments-svc.
create publication coro_events for table
    payments (
        user_id, payment_id, client_number, service_id, amount, status, event, reason, version, traceparent,
        initiated_at, expires_at, authorized_at, completed_at, rejected_at, failed_at, cancelled_at,
        cancel_requested_at
    ),
    parked
with (publish = 'insert, update');
