-- The processor database: what was asked of the gateway, and what is known of it.

create table charges (
    payment_id         uuid        not null,
    user_id            uuid        not null,
    client_number      text        not null,
    service_id         text        not null,
    amount             bigint      not null,
    status             text        not null,
    attempt            integer     not null default 1,
    exposed            boolean     not null default false,
    reason             text,
    version            integer     not null default 1,
    provider_reference text,
    traceparent        text,
    lease_until        timestamptz not null,
    expires_at         timestamptz,
    created_at         timestamptz not null default now(),
    decided_at         timestamptz,
    constraint charges_pkey primary key (payment_id),
    constraint charges_amount_range check (amount between 1 and 9007199254740991),
    constraint charges_version_positive check (version >= 1),
    constraint charges_attempt_positive check (attempt >= 1),
    constraint charges_status_known check (
        status in ('waiting', 'calling', 'unknown', 'succeeded', 'declined', 'expired', 'cancelled')),
    -- A hold may be released only on proof that no call was made, or on a decline.
    constraint charges_exposed_is_not_released check (
        not (exposed and status in ('waiting', 'expired', 'cancelled')) and (exposed or status <> 'unknown')),
    constraint charges_decided_at_set check (
        (status in ('succeeded', 'declined', 'expired', 'cancelled')) = (decided_at is not null)),
    constraint charges_succeeded_has_reference check (status <> 'succeeded' or provider_reference is not null)
)
-- Nearly every row is updated once, soon, to one a little larger: room for both versions keeps it heap-only.
with (fillfactor = 45);
-- The sweeper reads by age. A block range index costs next to nothing per row, and created_at never changes,
-- so it does not end heap-only updates.
create index charges_created_at on charges using brin (created_at) with (pages_per_range = 16, autosummarize = on);

comment on table charges is 'One row per payment that reached the processor: the intent, committed before any call, then the outcome.';
comment on column charges.status is 'waiting: not callable now. calling: a call may have been made, lease running. unknown: a call may have been made, being inquired. Then succeeded | declined | expired | cancelled.';
comment on column charges.attempt is 'Counts leases taken; an outcome is written only by the owner of the attempt (compare-and-set).';
comment on column charges.exposed is 'A call may have reached the gateway without an answer (it was unknown once). Then it never waits, expires or is cancelled.';
comment on column charges.reason is 'Decline code, or why the outcome is unknown.';
comment on column charges.provider_reference is 'The gateway''s own id of the charge.';
comment on column charges.lease_until is 'calling: until then the attempt belongs to the process that took it; lapsed, it is unknown. waiting: not called again before.';
comment on column charges.expires_at is 'No first call after this instant, by this database''s clock.';

create table charge_attempts (
    payment_id uuid        not null,
    user_id    uuid        not null,
    attempt    integer     not null,
    seq        integer     not null,
    kind       text        not null,
    outcome    text        not null,
    detail     text,
    next_at    timestamptz,
    at         timestamptz not null default now(),
    constraint charge_attempts_pkey primary key (payment_id, attempt, seq),
    constraint charge_attempts_kind_known check (kind in ('charge', 'inquiry', 'sweep'))
);
comment on table charge_attempts is 'What each call and inquiry that did not settle a charge said. Not published: it changes no state.';
comment on column charge_attempts.seq is '1, 2, 3 ... within the attempt: 1 is how the call ended, the rest are inquiries.';
comment on column charge_attempts.kind is 'charge: a call. sweep: a lease that lapsed. inquiry: its row, inserted before it is made, is the claim of who makes it.';
comment on column charge_attempts.outcome is 'charge, sweep: not_sent | unknown. inquiry: asking, then succeeded | declined | not_found | unavailable.';
comment on column charge_attempts.next_at is 'When the next inquiry is due; while asking, when somebody else may ask.';

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
comment on column parked.parked_id is 'Where it was read: queue/message id, or queue/hash of the body. Parking the same message again changes nothing.';
comment on column parked.source is 'The queue or topic it came from.';

grant select, insert, update on charges, charge_attempts to processor_svc;
grant select, insert on parked to processor_svc;
grant select on charges, parked to coro_relay;
grant select on all tables in schema public to coro_checker;
