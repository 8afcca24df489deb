-- What literals are compared with: each column's type as it is declared and without limits, whether it has any, the labels of
-- an enum, and whether values that are equal may be printed in several ways. A domain is looked through.
select n.nspname, c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),
    pg_catalog.format_type(base.type, -1),
    -- Other types of that kind refuse what does not fit, and may have no equality.
    base.modifier <> -1 and t.typnamespace = 'pg_catalog'::regnamespace,
    (select pg_catalog.json_agg(e.enumlabel order by e.enumsortorder) from pg_catalog.pg_enum e
        where e.enumtypid in (base.type, t.typelem)),
    (base.modifier = -1 and coalesce(nullif(t.typelem, 0), t.oid) in ('numeric'::regtype, 'bpchar'::regtype))
        or coalesce(nullif(t.typelem, 0), t.oid) in ('interval'::regtype, 'timetz'::regtype, 'jsonb'::regtype)
        or exists (select from pg_catalog.pg_collation l where l.oid = a.attcollation and not l.collisdeterministic)
        or t.typname = 'citext'
from pg_catalog.pg_class c
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
cross join lateral (
    with recursive chain(type, modifier, depth) as (
        select a.atttypid, a.atttypmod, 0
        union all
        select d.typbasetype, case when chain.modifier = -1 then d.typtypmod else chain.modifier end, chain.depth + 1
        from chain join pg_catalog.pg_type d on d.oid = chain.type and d.typtype = 'd')
    select type, modifier from chain order by depth desc limit 1) base
join pg_catalog.pg_type t on t.oid = base.type
where (n.nspname, c.relname, a.attname) in ({names})
