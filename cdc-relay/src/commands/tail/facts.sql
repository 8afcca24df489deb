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
    'leftovers', (
        select coalesce(jsonb_agg(p.pubname), '[]')
        from pg_catalog.pg_publication p
        where p.pubname ~ '^cdc_relay_tail_[0-9a-f]{8}(_u)?$')
)
from pg_catalog.pg_roles r
where r.rolname = current_user
