-- Everything that the server says of the tables which a publication has, or would have: one answer, alike from 13 on.
-- Placeholders: the publication's name or null; schemas and names of the tables that are asked for by name; whether,
-- without a publication, every table is meant rather than those that are named; one table's oid, or null.
-- to_jsonb takes whole catalog rows, since their columns differ from version to version.
with recursive publication as (
    select p.oid, p.pubname, to_jsonb(p) as row
    from pg_catalog.pg_publication p
    where p.pubname = $publication
),
named as (
    select w.schema, w.name, w.place, c.oid, c.relkind, c.relpersistence, c.relispartition
    from rows from (unnest($schemas::text[]), unnest($names::text[])) with ordinality as w(schema, name, place)
    left join pg_catalog.pg_namespace n on n.nspname = w.schema
    left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = w.name
),
-- A publication of a table has the tables that inherit from it as well; partitions are part of their root.
would as (
    select named.oid from named where named.oid is not null
    union
    select c.oid
    from would
    join pg_catalog.pg_inherits i on i.inhparent = would.oid
    join pg_catalog.pg_class c on c.oid = i.inhrelid and not c.relispartition
),
published as (
    select c.oid, to_jsonb(t) -> 'attnames' as attnames, to_jsonb(t) ->> 'rowfilter' as filter,
           to_jsonb(r) ->> 'prqual' as tree, coalesce(to_jsonb(r) ->> 'prattrs', '') <> '' as listed
    from publication p
    join pg_catalog.pg_publication_tables t on t.pubname = p.pubname
    join pg_catalog.pg_namespace n on n.nspname = t.schemaname
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = t.tablename
    left join pg_catalog.pg_publication_rel r on r.prpubid = p.oid and r.prrelid = c.oid
),
publishable as (
    select c.oid, c.relispartition
    from pg_catalog.pg_class c
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p') and c.relpersistence = 'p' and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'
),
chosen as (
    select p.*, true as published from published p
    union all
    select c.oid, null, null, null, false, false
    from would
    join publishable c on c.oid = would.oid
    where c.oid not in (select published.oid from published) and not exists (
        select from pg_catalog.pg_partition_ancestors(c.oid) a
        where a.relid <> c.oid and (a.relid in (select would.oid from would) or a.relid in (select published.oid from published)))
    union all
    select c.oid, null, null, null, false, false
    from publishable c
    where $everything and not c.relispartition
),
tables as (
    select c.oid, n.nspname, c.relname, c.relkind, c.reltuples, c.relowner, chosen.attnames, chosen.filter, chosen.tree, chosen.listed,
           chosen.published
    from chosen
    join pg_catalog.pg_class c on c.oid = chosen.oid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where $only::oid is null or c.oid = $only::oid
),
-- Not by pg_partition_tree: it locks every table that it names until the transaction ends, which stands in the way of
-- migrations and waits for them.
branches as (
    select tables.oid as of, i.inhrelid as oid
    from tables join pg_catalog.pg_inherits i on i.inhparent = tables.oid
    where tables.relkind = 'p'
    union all
    select branches.of, i.inhrelid
    from branches join pg_catalog.pg_inherits i on i.inhparent = branches.oid
),
-- The server judges, and writes to the WAL, partition by partition.
members as (
    select tables.oid as of, tables.oid, true as top from tables
    union all
    select branches.of, branches.oid, false
    from branches join pg_catalog.pg_class c on c.oid = branches.oid
    where c.relkind <> 'p'
),
identities as (
    select m.of, m.top, n.nspname, c.relname, c.oid, jsonb_build_object(
        'schema', n.nspname,
        'name', c.relname,
        'kind', c.relkind,
        'logged', c.relpersistence = 'p',
        'root', (
            select jsonb_build_object('schema', rn.nspname, 'name', rc.relname)
            from pg_catalog.pg_class rc
            join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
            where c.relispartition and rc.oid = pg_catalog.pg_partition_root(c.oid)),
        'identity', c.relreplident,
        -- As the server finds it: any other index is none.
        'key', (
            select jsonb_agg(a.attname order by k.place)
            from pg_catalog.pg_index i
            cross join unnest(i.indkey::int2[]) with ordinality k(attnum, place)
            join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
            where i.indrelid = c.oid and k.place <= i.indnkeyatts
              and i.indislive and i.indisvalid and i.indisunique and i.indimmediate and i.indpred is null
              and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end),
        'primary_key', (
            select jsonb_agg(a.attname order by k.place)
            from pg_catalog.pg_index i
            cross join unnest(i.indkey::int2[]) with ordinality k(attnum, place)
            join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum = k.attnum
            where i.indrelid = c.oid and k.place <= i.indnkeyatts and i.indisprimary),
        'deferrable', exists (
            select from pg_catalog.pg_index i where i.indrelid = c.oid and i.indisprimary and not i.indimmediate),
        'generated', (
            select coalesce(jsonb_object_agg(a.attname, a.attgenerated), '{}')
            from pg_catalog.pg_attribute a
            where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated <> '')
    ) as row
    from members m
    join pg_catalog.pg_class c on c.oid = m.oid
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
)
select jsonb_build_object(
    'version', current_setting('server_version_num')::int,
    'wal_level', current_setting('wal_level'),
    'encoding', current_setting('server_encoding'),
    'publication', (
        select jsonb_build_object('name', p.pubname, 'all_tables', p.row -> 'puballtables', 'insert', p.row -> 'pubinsert',
            'update', p.row -> 'pubupdate', 'delete', p.row -> 'pubdelete', 'truncate', p.row -> 'pubtruncate',
            'via_root', p.row -> 'pubviaroot', 'generated', coalesce(p.row ->> 'pubgencols', 'n') in ('s', 'true'))
        from publication p),
    'named', (
        select coalesce(jsonb_agg(jsonb_build_object('schema', w.schema, 'name', w.name, 'kind', w.relkind,
            'logged', w.relpersistence = 'p', 'temporary', coalesce(w.relpersistence = 't', false), 'root', (
                select jsonb_build_object('schema', rn.nspname, 'name', rc.relname)
                from pg_catalog.pg_class rc
                join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
                where w.relispartition and rc.oid = pg_catalog.pg_partition_root(w.oid))) order by w.place), '[]')
        from named w),
    -- Only where a name leads nowhere: what may have been meant.
    'existing', (
        select coalesce(jsonb_agg(jsonb_build_object('schema', n.nspname, 'name', c.relname)), '[]')
        from publishable p
        join pg_catalog.pg_class c on c.oid = p.oid
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where exists (select from named w where w.oid is null)),
    'schemas', (
        select coalesce(jsonb_agg(n.nspname), '[]')
        from pg_catalog.pg_namespace n
        where exists (select from named w where w.oid is null)),
    'tables', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'oid', t.oid::int8,
            'itself', (select i.row from identities i where i.of = t.oid and i.top),
            'partitions', (
                select coalesce(jsonb_agg(i.row order by i.nspname, i.relname), '[]')
                from identities i where i.of = t.oid and not i.top),
            'columns', (
                select coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type_oid', a.atttypid::int8,
                    'type', pg_catalog.format_type(a.atttypid, -1),
                    'collation', (
                        select format('%I.%I', cn.nspname, co.collname)
                        from pg_catalog.pg_collation co
                        join pg_catalog.pg_namespace cn on cn.oid = co.collnamespace
                        join pg_catalog.pg_type ct on ct.oid = a.atttypid
                        where co.oid = a.attcollation and ct.typcollation <> a.attcollation),
                    'large', a.attlen = -1 and a.attstorage <> 'p',
                    -- Before 18 no generated column leaves, though the view of 15 lists them.
                    'published', case
                        when a.attgenerated <> '' and current_setting('server_version_num')::int < 180000 then false
                        when t.attnames is not null then t.attnames ? a.attname::text
                        else a.attgenerated = '' or (not t.published and a.attgenerated = 's') end) order by a.attnum), '[]')
                from pg_catalog.pg_attribute a
                where a.attrelid = t.oid and a.attnum > 0 and not a.attisdropped),
            'is_published', t.published,
            'listed', t.listed,
            'filter', t.filter,
            'filter_columns', (
                select coalesce(jsonb_agg(distinct coalesce(a.attname, '*')), '[]')
                from regexp_matches(t.tree, '\{VAR :varno \d+ :varattno (-?\d+)', 'g') v
                left join pg_catalog.pg_attribute a on a.attrelid = t.oid and a.attnum = v[1]::int and a.attnum <> 0),
            'estimate', t.reltuples::int8,
            'owned', pg_catalog.pg_has_role(t.relowner, 'usage'),
            'role', current_user,
            'selectable', pg_catalog.has_table_privilege(t.oid, 'select'),
            'hidden', pg_catalog.row_security_active(t.oid)
        ) order by t.nspname, t.relname), '[]')
        from tables t)
)
