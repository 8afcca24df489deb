-- What a publication sends, in one answer: see `Coverage`. What stands in braces depends on the version.
select jsonb_build_object(
    'publication', (
        select jsonb_build_object('oid', p.oid::int8, 'made', p.xmin::text, 'command', p.cmin::text::int8,
            'inserts', p.pubinsert, 'updates', p.pubupdate, 'deletes', p.pubdelete)
        from pg_catalog.pg_publication p where p.pubname = {publication}),
    'tables', (
        select coalesce(jsonb_agg(jsonb_build_object(
            'schema', n.nspname,
            'name', c.relname,
            'oid', c.oid::int8,
            'place', (
                select d.xmin::text from pg_catalog.pg_depend d
                where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = c.oid and d.objsubid = 0
                  and d.refclassid = 'pg_catalog.pg_namespace'::regclass and d.deptype = 'n'),
            'shape', (
                select md5(concat(
                    (select string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.attgenerated), ',' order by a.attnum)
                     from pg_catalog.pg_attribute a
                     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
                    (select string_agg(concat_ws(' ', x.oid, x.relreplident, i.indkey, i.indnkeyatts, i.indisprimary,
                            i.indisreplident, i.indisvalid, i.indimmediate), ',' order by x.oid, i.indexrelid)
                     from pg_catalog.pg_class x
                     left join pg_catalog.pg_index i on i.indrelid = x.oid and i.indisunique
                     where x.oid = any(tree.oids)),
                    (select p.pubviaroot)))),
            'toast', c.reltoastrelid::int8,
            'members', (
                select coalesce(jsonb_agg(m.member order by m.member ->> 'oid'), '[]') from (
                    select jsonb_build_object('oid', r.oid::int8, 'of', format('table %I.%I', rn.nspname, rc.relname),
                        'made', r.xmin::text, 'command', r.cmin::text::int8, {limits}) as member
                    from pg_catalog.pg_publication_rel r
                    join pg_catalog.pg_class rc on rc.oid = r.prrelid
                    join pg_catalog.pg_namespace rn on rn.oid = rc.relnamespace
                    where r.prpubid = p.oid and r.prrelid = any(lineage.oids)
                    {schemas}) m),
            'parts', (
                select coalesce(jsonb_agg(jsonb_build_object('oid', pc.oid::int8, 'name', format('%I.%I', pn.nspname, pc.relname),
                    'made', i.xmin::text, 'toast', pc.reltoastrelid::int8) order by pc.oid), '[]')
                from pg_catalog.pg_inherits i
                join pg_catalog.pg_class pc on pc.oid = i.inhrelid
                join pg_catalog.pg_namespace pn on pn.oid = pc.relnamespace
                where c.relkind = 'p' and i.inhrelid = any(tree.oids) and i.inhrelid <> c.oid)
        ) order by n.nspname, c.relname), '[]')
        from pg_catalog.pg_publication p
        join pg_catalog.pg_publication_tables pt on pt.pubname = p.pubname
        join pg_catalog.pg_namespace n on n.nspname = pt.schemaname
        join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = pt.tablename
        cross join lateral (
            select array(select c.oid union select a.relid from pg_catalog.pg_partition_ancestors(c.oid) a) as oids
        ) lineage
        cross join lateral (
            -- Not by pg_partition_tree: it locks every table that it names until the transaction ends.
            select array(
                with recursive branches as (
                    select c.oid
                    union
                    select i.inhrelid
                    from branches join pg_catalog.pg_inherits i on i.inhparent = branches.oid
                    where c.relkind = 'p'
                )
                select branches.oid from branches) as oids
        ) tree
        where p.pubname = {publication})
)
