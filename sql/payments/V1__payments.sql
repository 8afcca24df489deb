-- The payments database: what users asked for, and where each payment stands.
-- Rows are the outbox: a committed change of a published row is an event (see V2).

create table services (
    service_id text not null,
    name       text not null,
    enabled    boolean not null default true,
    constraint services_pkey primary key (service_id),
    constraint services_service_id_length check (char_length(service_id) between 1 and 64)
);
comment on table services is 'The payment entities a user can pay. A disabled one is refused when the payment is asked for.';
comment on column services.enabled is 'False: new payments are refused (422); payments already accepted go their way.';

create table payments (
    user_id             uuid        not null,
    payment_id          uuid        not null,
    idempotency_key     text        not null,
    fingerprint         bytea       not null,
    client_number       text        not null,
    service_id          text        not null,
    amount              bigint      not null,
    status              text        not null default 'initiated',
    event               text        not null default 'initiated',
    reason              text,
    version             integer     not null default 1,
    traceparent         text,
    initiated_at        timestamptz not null default now(),
    expires_at          timestamptz not null,
    authorized_at       timestamptz,
    completed_at        timestamptz,
    rejected_at         timestamptz,
    failed_at           timestamptz,
    cancelled_at        timestamptz,
    cancel_requested_at timestamptz,
    constraint payments_pkey primary key (user_id, payment_id),
    constraint payments_idempotency_key unique (user_id, idempotency_key),
    constraint payments_amount_range check (amount between 1 and 9007199254740991),
    constraint payments_version_positive check (version >= 1),
    constraint payments_status_known check (
        status in ('initiated', 'authorized', 'completed', 'rejected', 'failed', 'cancelled')),
    constraint payments_event_known check (
        event in ('initiated', 'authorized', 'completed', 'rejected', 'failed', 'cancelled',
                  'outcome_unknown', 'cancel_recorded', 'cancel_requested')),
    constraint payments_authorized_at_set check (status not in ('authorized', 'completed') or authorized_at is not null),
    constraint payments_terminal_at_set check (
        (status = 'completed') = (completed_at is not null)
        and (status = 'rejected') = (rejected_at is not null)
        and (status = 'failed') = (failed_at is not null)
        and (status = 'cancelled') = (cancelled_at is not null))
)
-- Two to four updates follow each insert. With less than half of a page filled, a batch that updates every row
-- on it still finds room, and the updates stay heap-only (no index is touched).
with (fillfactor = 45);
-- No foreign key to services: it would lock a parent row that every payment shares.
-- No further index: one on a column that a step updates would end heap-only updates.

comment on table payments is 'One row per payment: the state of its saga as payments-svc knows it.';
comment on column payments.user_id is 'Owner; the Kafka key of every event of this payment.';
comment on column payments.payment_id is 'UUIDv7; the id of the saga everywhere (transaction_id on the RabbitMQ wire).';
comment on column payments.idempotency_key is 'The client''s key: one payment per (user, key), for ever.';
comment on column payments.fingerprint is 'SHA-256 over the parsed fields of the request; same key with another body is refused.';
comment on column payments.amount is 'Minor units of the one currency, 1 to 2^53-1 so that JSON readers keep it exact.';
comment on column payments.status is 'initiated -> authorized -> completed | failed | cancelled; initiated -> rejected. The last four are absorbing.';
comment on column payments.event is 'What happened last: the event this version of the row tells.';
comment on column payments.reason is 'Why it was rejected, failed or cancelled, or why its outcome is unknown.';
comment on column payments.version is '1, 2, 3 ... without gaps: every update is a transition.';
comment on column payments.traceparent is 'W3C trace context of the request that created the payment.';
comment on column payments.expires_at is 'After this the gateway is not called a first time; an outcome already under way is still awaited.';
comment on column payments.cancel_requested_at is 'When the user asked to cancel; recorded only, decided by the processor.';

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
comment on table parked is 'Messages that cannot be applied, set aside in the transaction of their batch and told to <source>.parked.';
comment on column parked.parked_id is 'Where it was read: topic/partition/offset. Parking the same message again changes nothing.';
comment on column parked.source is 'The topic it came from.';

-- Roles are made once per cluster, before any migration (sql/src/lib.rs). No DELETE, no TRUNCATE for services.
grant select on services to payments_svc;
grant select, insert, update on payments to payments_svc;
grant select, insert on parked to payments_svc;
grant select on payments, parked to coro_relay;
grant select on all tables in schema public to coro_checker;
