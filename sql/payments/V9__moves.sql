-- Moves: what this database recorded of moves of buckets, as their source or as their target.
--
-- * The mover writes them (`coroctl shard`), as the owner. coroctl/src/shard/moves.rs has the steps and the rules.
-- * Both shards of a move have its record. Whoever goes on with a move that was interrupted needs nothing else.
-- * The tables are the same in each database of the saga, but for the service that may read `moves`. They are not published. `recover` alone
--   asks whether there is a row.
create table moves (
    move_id            uuid        not null,
    side               text        not null,
    peer               text        not null,
    buckets            smallint[]  not null,
    source_epochs      bigint[]    not null,
    target_epochs      bigint[]    not null,
    source_incarnation text        not null,
    target_incarnation text        not null,
    tables             text[]      not null,
    schema_version     integer     not null,
    relay_slots        text[]      not null,
    state              text        not null default 'open',
    operator           text        not null,
    began_at           timestamptz not null default now(),
    abort_requested_at timestamptz,
    granted_at         timestamptz,
    ended_at           timestamptz,
    constraint moves_pkey primary key (move_id),
    constraint moves_side_known check (side in ('source', 'target')),
    constraint moves_state_known check (state in ('open', 'moved', 'rolled_back')),
    constraint moves_ended_at_set check ((state = 'open') = (ended_at is null)),
    constraint moves_epochs_of_each_bucket check (
        cardinality(buckets) > 0 and cardinality(source_epochs) = cardinality(buckets)
        and cardinality(target_epochs) = cardinality(buckets)),
    constraint moves_tables_named check (cardinality(tables) > 0),
    constraint moves_relay_slots_named check (cardinality(relay_slots) > 0),
    constraint moves_operator_name check (operator ~ '^[a-z0-9][a-z0-9._@-]{0,63}$')
);
comment on table moves is 'One row per move that this database took part in.';
comment on column moves.side is 'Whether this database is the source or the target.';
comment on column moves.peer is 'The name of the other shard.';
comment on column moves.source_epochs is 'At the source: the epochs with which the present attempt began, in the order of buckets.';
comment on column moves.source_incarnation is 'What incarnation() answered at the source when the move began. After another answer it is rolled back.';
comment on column moves.tables is 'The tables whose rows are moved: those with a user_id when the move began.';
comment on column moves.schema_version is 'The latest migration of both databases when the move began.';
comment on column moves.granted_at is 'At the source: when it was recorded that the target owns the buckets. Nothing is removed before.';
comment on column moves.relay_slots is 'The logical slots of the source when the move began, its relay''s: a grant waits for each.';
comment on column moves.abort_requested_at is 'At the source: when an operator asked to abort. It counts until the grant.';

create table moving_buckets (
    bucket  smallint not null,
    move_id uuid     not null,
    constraint moving_buckets_pkey primary key (bucket),
    constraint moving_buckets_of_move foreign key (move_id) references moves (move_id)
);
comment on table moving_buckets is 'The buckets of open moves: a bucket takes part in one at a time.';

grant select on moves, moving_buckets to coro_checker;
grant select on moves to payments_svc;
