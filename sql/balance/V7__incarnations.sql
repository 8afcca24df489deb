-- Incarnations: which history of this database may be used.
--
-- * A database that was restored, or whose standby was promoted, may lack rows that were committed before. A service that used
--   it as it is would do again what was done. So such a database is closed: a service gets no connection to it.
-- * An incarnation is a database with one history: the cluster, the timeline, the database, and this table. A restore from a
--   base backup or a promotion begins another timeline. A dump is restored into another table.
-- * The database is open while its incarnation is in this table. The migration adds the first one. `recover` of the service adds
--   another one, after it has made the rows again that were lost.
-- * It is closed by hand, by the owner: update incarnations set incarnation = incarnation || ' closed at ' || now();
-- * The table is the same in each database of the saga. It is not published.
create table incarnations (
    incarnation text        not null,
    operator    text        not null,
    reason      text        not null,
    opened_at   timestamptz not null default now(),
    constraint incarnations_pkey primary key (incarnation),
    constraint incarnations_operator_name check (operator ~ '^[a-z0-9][a-z0-9._@-]{0,63}$'),
    constraint incarnations_reason_given check (char_length(reason) between 1 and 500)
);
comment on table incarnations is 'Append-only: the incarnations of this database that were opened, by whom and why.';
comment on column incarnations.incarnation is 'Cluster, timeline, database and table: what incarnation() answered then.';
comment on column incarnations.operator is 'The person who opened it, by the name they gave; migrate: the database began with it.';

-- The timeline is that of the WAL: the last checkpoint's is the old one for a while after a promotion.
create function incarnation() returns text language sql stable as $$
    select concat_ws('/', system.system_identifier, left(pg_walfile_name(pg_current_wal_lsn()), 8), d.oid,
                     'public.incarnations'::regclass::oid)
      from pg_control_system() system, pg_database d
     where d.datname = current_database()
$$;
comment on function incarnation() is 'The incarnation of this database. Fails on a standby.';

insert into incarnations (incarnation, operator, reason)
values (incarnation(), 'migrate', 'The database began, or was upgraded to know its incarnation.');

grant select, insert on incarnations to balance_svc;
grant select on incarnations to coro_checker;
