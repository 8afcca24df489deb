-- The fraud detector's database: the payments it has seen, and the alerts they raised.

create table payments (
    user_id      uuid        not null,
    payment_id   uuid        not null,
    amount       bigint      not null,
    initiated_at timestamptz not null,
    constraint payments_pkey primary key (user_id, payment_id)
);
comment on table payments is 'Every payment that was seen, once: the windows of the rules are read from here.';
comment on column payments.initiated_at is
    'Event time. Windows are over it, never over the time of reading, so a replay finds the same.';

-- A window is one range of this index, and nothing but this index: payments are never updated, so its pages soon are
-- all-visible.
create index payments_window on payments (user_id, initiated_at) include (payment_id, amount);

create table alerts (
    user_id      uuid        not null,
    payment_id   uuid        not null,
    rule         text        not null,
    amount       bigint      not null,
    observed     bigint      not null,
    threshold    bigint      not null,
    initiated_at timestamptz not null,
    raised_at    timestamptz not null default now(),
    constraint alerts_pkey primary key (user_id, payment_id, rule),
    constraint alerts_rule_known check (rule in ('payment_amount', 'payment_count', 'payment_sum')),
    constraint alerts_observed_is_exact_in_json check (observed between 1 and 9007199254740991)
);
comment on table alerts is 'Append-only: one row per rule and payment that broke it, an event of FraudAlertTopic.';
comment on column alerts.rule is
    'payment_amount: the payment alone; payment_count, payment_sum: all of the user''s in the window that ends with it.';
comment on column alerts.observed is
    'The amount, count or sum when the alert was raised, at most 2^53-1; payments that are read later may add to it.';
comment on column alerts.threshold is 'What the rule allowed then.';
comment on column alerts.initiated_at is 'Event time of the payment.';

create table parked (
    parked_id   text        not null,
    source      text        not null,
    message_key text,
    type        text,
    headers     jsonb       not null,
    body        bytea       not null,
    reason      text        not null,
    parked_at   timestamptz not null default now(),
    constraint parked_pkey primary key (parked_id)
);
comment on table parked is
    'Messages that cannot be applied, inserted in the transaction of their batch. The saga does not wait for them.';
comment on column parked.parked_id is
    'Where it was read: topic/partition/offset. Parking the same message again changes nothing.';
comment on column parked.source is 'The topic it came from.';

grant select, insert on payments, alerts, parked to fraud;
grant select on alerts to coro_relay;
grant select on all tables in schema public to coro_checker;
