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

grant select, insert on parked_acts to balance_svc;
grant select on parked_acts to coro_checker;
