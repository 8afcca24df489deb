-- Acts of operators on parked messages. A parked message is never changed or removed: what became of it is a row of its own.
--
-- * retried: the message was applied again, by the code that consumes it. dismissed: it will not be applied, with the reason.
-- * One row per message and act, written in the transaction of the act. Asking again changes nothing.
-- * The table is the same in each database of the saga. It is not published: what a retry changes is emitted by its own row.
create table parked_acts (
    parked_id text        not null,
    act       text        not null,
    operator  text        not null,
    reason    text        not null,
    outcome   text        not null,
    acted_at  timestamptz not null default now(),
    constraint parked_acts_pkey primary key (parked_id, act),
    constraint parked_acts_parked_id_known foreign key (parked_id) references parked,
    constraint parked_acts_act_known check (act in ('retried', 'dismissed')),
    constraint parked_acts_operator_name check (operator ~ '^[a-z0-9][a-z0-9._@-]{0,63}$'),
    constraint parked_acts_reason_given check (char_length(reason) between 1 and 500)
);
comment on table parked_acts is 'Append-only: what operators did with parked messages, by whom and why.';
comment on column parked_acts.operator is 'The person who acted, by the name they gave.';
comment on column parked_acts.outcome is 'retried: applied, or already. dismissed: why the message could not be applied at that time.';

grant select, insert on parked_acts to processor_svc;
grant select on parked_acts to coro_checker;

-- Resolutions: what two operators know of a charge that the processor cannot find out. One proposes, another confirms.
--
-- * A proposal changes nothing. The confirmation is decided on the charge as it is then, and written with it.
-- * Both are rows that nobody changes. What a confirmation changes is a transition of `charges`, which is emitted as ever.
create table resolutions (
    resolution_id      uuid        not null,
    payment_id         uuid        not null,
    user_id            uuid        not null,
    client_number      text        not null,
    service_id         text        not null,
    amount             bigint      not null,
    evidence              text        not null,
    provider_reference text,
    code               text,
    charge             jsonb,
    operator           text        not null,
    reason             text        not null,
    proposed_at        timestamptz not null default now(),
    constraint resolutions_pkey primary key (resolution_id),
    constraint resolutions_operator_once unique (resolution_id, operator),
    constraint resolutions_amount_range check (amount between 1 and 9007199254740991),
    constraint resolutions_evidence_known check (
        (evidence = 'succeeded' and provider_reference is not null and code is null)
        or (evidence = 'declined' and provider_reference is null and code is not null)
        or (evidence = 'never_made' and provider_reference is null and code is null)),
    constraint resolutions_operator_name check (operator ~ '^[a-z0-9][a-z0-9._@-]{0,63}$'),
    constraint resolutions_reason_given check (char_length(reason) between 1 and 500)
);
create index resolutions_payment_id on resolutions (payment_id);
comment on table resolutions is 'Append-only: what an operator proposed about a charge.';
comment on column resolutions.resolution_id is 'Derived from the payment, the operator and the key of the request: the same request is one proposal.';
comment on column resolutions.user_id is 'With client_number, service_id and amount: the terms of the payment, or of the hold. The charge gets them.';
comment on column resolutions.evidence is 'succeeded: the gateway charged this amount, once. declined: it declined or gave everything back. never_made: it has no charge, and will make none.';
comment on column resolutions.charge is 'The charge as it was when this was proposed; null: there was none.';

create table resolution_confirmations (
    resolution_id uuid        not null,
    proposed_by   text        not null,
    operator      text        not null,
    reason        text        not null,
    outcome       text        not null,
    before        jsonb,
    after         jsonb       not null,
    confirmed_at  timestamptz not null default now(),
    constraint resolution_confirmations_pkey primary key (resolution_id),
    constraint resolution_confirmations_of_proposal foreign key (resolution_id, proposed_by)
        references resolutions (resolution_id, operator),
    constraint resolution_confirmations_by_another check (operator <> proposed_by),
    constraint resolution_confirmations_outcome_known check (outcome in ('applied', 'already')),
    constraint resolution_confirmations_operator_name check (operator ~ '^[a-z0-9][a-z0-9._@-]{0,63}$'),
    constraint resolution_confirmations_reason_given check (char_length(reason) between 1 and 500)
);
comment on table resolution_confirmations is 'Append-only: the confirmations of proposals, each by another operator, with what it changed.';
comment on column resolution_confirmations.outcome is 'applied: the charge changed. already: it said so before.';
comment on column resolution_confirmations.before is 'The charge before; null: there was none.';

grant select, insert on resolutions, resolution_confirmations to processor_svc;
grant select on resolutions, resolution_confirmations to coro_checker;
