-- The balance database: who has how much, and every movement that made it so.

create table accounts (
    user_id   uuid   not null,
    available bigint not null default 0,
    held      bigint not null default 0,
    constraint accounts_pkey primary key (user_id),
    constraint accounts_available_not_negative check (available >= 0),
    constraint accounts_held_not_negative check (held >= 0)
)
-- Every hold and every capture updates this row: room for several versions keeps the updates heap-only.
with (fillfactor = 45);
comment on table accounts is 'One row per user: the fold of the ledger. Made by the first deposit.';
comment on column accounts.available is 'Minor units free to spend.';
comment on column accounts.held is 'Minor units reserved by payments that have not ended.';

create table ledger (
    user_id     uuid        not null,
    payment_id  uuid        not null,
    phase       smallint    not null,
    kind        text        not null,
    amount      bigint      not null,
    service_id  text,
    reason      text,
    traceparent text,
    created_at  timestamptz not null default now(),
    constraint ledger_pkey primary key (user_id, payment_id, phase),
    constraint ledger_amount_positive check (amount > 0),
    constraint ledger_kind_matches_phase check (
        (phase = 1 and kind in ('hold', 'rejection', 'deposit')) or (phase = 2 and kind in ('capture', 'release'))),
    constraint ledger_reason_given check ((kind in ('rejection', 'release')) = (reason is not null))
);
comment on table ledger is 'Append-only. The primary key is the inbox: one first phase and one second phase per payment, ever.';
comment on column ledger.payment_id is 'The payment; for a deposit an id derived from the user and the idempotency key.';
comment on column ledger.phase is '1 = hold | rejection | deposit, 2 = capture | release.';
comment on column ledger.kind is 'hold: available -> held; rejection: nothing moves; capture: held -> service; release: held -> available; deposit: outside -> available.';
comment on column ledger.amount is 'Minor units; of a second phase always that of its hold.';
comment on column ledger.service_id is 'Whom a capture pays. No running balance is kept for a service: it would be one hot row for everybody.';
comment on column ledger.reason is 'Why a payment was rejected or its hold released.';

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

-- The ledger is append-only by grant, not by habit.
grant select, insert, update on accounts to balance_svc;
grant select, insert on ledger, parked to balance_svc;
grant select on ledger, parked to coro_relay;
grant select on all tables in schema public to coro_checker;
