-- Everything that doctor asks one database besides the contract, in one answer. $1: the tables that it is about, as oids.
-- to_jsonb takes whole catalog rows, since what they have differs from version to version.
select jsonb_build_object(
    'version', current_setting('server_version_num')::int,
    'version_text', current_setting('server_version'),
    'database', current_database(),
    'encoding', current_setting('server_encoding'),
    'standby', pg_is_in_recovery(),
    'settings', (
        select jsonb_object_agg(s.name, jsonb_build_object('value', s.setting, 'unit', coalesce(s.unit, '')))
        from pg_catalog.pg_settings s
        where s.name in ('wal_level', 'max_replication_slots', 'max_wal_senders', 'max_slot_wal_keep_size',
            'idle_replication_slot_timeout', 'wal_sender_timeout', 'synchronous_commit', 'fsync',
            'full_page_writes', 'logical_decoding_work_mem', 'synchronized_standby_slots', 'wal_writer_delay',
            'synchronous_standby_names',
            'max_connections', 'superuser_reserved_connections', 'reserved_connections')),
    'role', (
        select jsonb_build_object('name', r.rolname, 'superuser', r.rolsuper, 'replication',
            r.rolsuper or r.rolreplication or exists (
                select from pg_catalog.pg_roles g
                where g.rolname = 'rds_replication' and pg_has_role(current_user, g.oid, 'member')),
            'connection_limit', nullif(r.rolconnlimit, -1),
            'connections', (
                select count(*) from pg_catalog.pg_stat_activity a
                where a.usesysid = r.oid and a.pid <> pg_backend_pid()),
            'valid_for', case when isfinite(r.rolvaliduntil)
                then extract(epoch from r.rolvaliduntil - now())::int8 end)
        from pg_catalog.pg_roles r where r.rolname = current_user),
    -- Walsenders count for role and database, and not for the server.
    'room', (
        select jsonb_build_object('database_limit', nullif(d.datconnlimit, -1),
            'database_connections', count(*) filter (where a.datid = d.oid),
            'connections', count(*) filter (where a.backend_type = 'client backend'))
        from pg_catalog.pg_database d, pg_catalog.pg_stat_activity a
        where d.datname = current_database() and a.pid <> pg_backend_pid() group by d.oid),
    'system_id', (select system_identifier::text from pg_catalog.pg_control_system()),
    -- The first eight digits of a log file's name are its timeline.
    'timeline', case when pg_is_in_recovery() then 0
        else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end,
    'flush', case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end,
    'slots', (select coalesce(jsonb_agg(to_jsonb(s)), '[]') from pg_catalog.pg_replication_slots s),
    'senders', (select count(*) from pg_catalog.pg_stat_replication),
    'standbys', (
        select coalesce(jsonb_agg(distinct a.application_name), '[]')
        from pg_catalog.pg_stat_replication a
        where not exists (select from pg_catalog.pg_replication_slots s
                          where s.active_pid = a.pid and s.slot_type = 'logical')
          and a.application_name not in ('pg_basebackup', 'pg_receivewal', 'cdc-relay')
          and not (a.flush_lsn is not null and a.replay_lsn is null)),
    -- Without the states where the role may not see them. A logical subscriber is no standby, whatever the server marks it as, and
    -- neither is a backup or an archive of the WAL, which flushes and never applies, whatever its name.
    'walsenders', (
        select coalesce(jsonb_agg(jsonb_build_object('state', w.sync_state, 'flushed', w.flush_lsn)), '[]')
        from pg_catalog.pg_stat_get_wal_senders() w
        where not exists (select from pg_catalog.pg_replication_slots s
                          where s.active_pid = w.pid and s.slot_type = 'logical')
          and not exists (select from pg_catalog.pg_stat_get_activity(w.pid) a
                          where a.application_name in ('pg_basebackup', 'pg_receivewal'))
          and not (w.flush_lsn is not null and w.replay_lsn is null)),
    'publications', (select coalesce(jsonb_agg(p.pubname), '[]') from pg_catalog.pg_publication p),
    -- What is stored outside the rows, with that of partitions.
    'toast', (
        select coalesce(jsonb_object_agg(m.of::text, m.bytes), '{}')
        from (select t.oid as of, sum(pg_relation_size(c.reltoastrelid))::int8 as bytes
              from unnest($1::oid[]) t(oid)
              cross join lateral (select t.oid union select p.relid from pg_partition_tree(t.oid) p) p(oid)
              join pg_catalog.pg_class c on c.oid = p.oid and c.reltoastrelid <> 0
              group by t.oid) m),
    'unlogged', (
        select coalesce(jsonb_agg(n.nspname || '.' || c.relname), '[]')
        from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where c.relkind in ('r', 'p') and c.relpersistence = 'u'),
    -- The log has to be kept from the begin of the oldest transaction that has written something.
    'transactions', (
        select coalesce(jsonb_agg(jsonb_build_object('pid', a.pid, 'user', a.usename, 'state', a.state,
            'seconds', extract(epoch from now() - a.xact_start)::int8) order by a.xact_start), '[]')
        from pg_catalog.pg_stat_activity a
        where a.backend_xid is not null and a.xact_start < now() - interval '1 minute'),
    'prepared', (
        select coalesce(jsonb_agg(jsonb_build_object('gid', x.gid, 'database', x.database,
            'seconds', extract(epoch from now() - x.prepared)::int8) order by x.prepared), '[]')
        from pg_catalog.pg_prepared_xacts x)
)
