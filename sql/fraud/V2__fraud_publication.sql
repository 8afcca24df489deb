-- The contract of this database: alerts leave it; the payments they rest on are published by payments-svc.
create publication coro_events for table
    alerts (user_id, payment_id, rule, amount, observed, threshold, initiated_at, raised_at)
with (publish = 'insert, update');
