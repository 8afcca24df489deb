-- What tail has to know before it makes anything, in one answer.
select jsonb_build_object(
    'version', current_setting('server_version_num')::int,
    'wal_level', current_setting('wal_level'),
    'standby', pg_is_in_recovery(),
    'role', current_user,
    'superuser', r.rolsuper,
    -- Amazon RDS has a role for it, since nobody is a superuser there.
    'replication', r.rolsuper or r.rolreplication or exists (
        select from pg_catalog.pg_roles g
        where g.rolname = 'rds_replication' and pg_has_role(current_user, g.oid, 'member')),
    'may_publish', has_database_privilege(current_database(), 'create'),
    'free_slots', current_setting('max_replication_slots')::int
        - (select count(*) from pg_catalog.pg_replication_slots),
    'tables', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'oid', c.oid::int8,
            'schema', n.nspname,
            'name', c.relname,
            'owned', pg_has_role(c.relowner, 'usage'),
            'identity', c.relreplident = 'f' or exists (
                select from pg_catalog.pg_index i
                where i.indrelid = c.oid and i.indisvalid
                  and ((c.relreplident = 'd' and i.indisprimary and i.indimmediate)
                    or (c.relreplident = 'i' and i.indisreplident))),
            'primary_key', (
                select coalesce(jsonb_agg(a.attname), '[]')
                from pg_catalog.pg_index i
                join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = any(i.indkey)
                where i.indrelid = c.oid and i.indisprimary)
        ) order by n.nspname, c.relname), '[]')
        from pg_catalog.pg_class c
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        -- Of a partitioned table the root stands for all.
        where c.relkind in ('r', 'p') and c.relpersistence = 'p' and not c.relispartition
          and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'),
    'leftovers', (
        select coalesce(jsonb_agg(p.pubname), '[]')
        from pg_catalog.pg_publication p
        where p.pubname ~ '^cdc_relay_tail_[0-9a-f]{8}(_u)?$')
)
from pg_catalog.pg_roles r
where r.rolname = current_user
