-- Buckets: which users this database owns. saga/src/shards.rs has the rules, and the steps of a move.
--
-- * A database is born owning every bucket: it is the one shard of its service, until some are moved.
-- * Every statement of a service that is about users names their buckets, each with its epoch: require_ownership().
-- * Only change_ownership() changes them: a compare-and-set on the epoch, which only rises.
-- * The table and the functions are the same in each database of the saga. They are not published.

-- A row filter of a publication may call no function of ours, so it has this expression.
create function bucket(user_id uuid) returns smallint language sql immutable parallel safe as $$
    select ((get_byte(sha256(uuid_send(user_id)), 0) << 2) | (get_byte(sha256(uuid_send(user_id)), 1) >> 6))::smallint
$$;
comment on function bucket(uuid) is 'The bucket of a user: the first 10 bits of the SHA-256 of the 16 bytes of its id. It never changes.';

create table owned_buckets (
    bucket smallint not null,
    epoch  bigint   not null default 1,
    owned  boolean  not null default true,
    peer   text,
    constraint owned_buckets_pkey primary key (bucket),
    constraint owned_buckets_bucket_range check (bucket between 0 and 1023),
    constraint owned_buckets_epoch_positive check (epoch >= 1)
);
comment on table owned_buckets is 'One row per bucket, for ever: whether this database owns it, and since which epoch.';
comment on column owned_buckets.epoch is 'Rises with each change, above that of any other shard at that time.';
comment on column owned_buckets.owned is 'The shard that owns a bucket at the highest epoch of all shards has its users.';
comment on column owned_buckets.peer is 'The other shard of the last change: who got the bucket, or gave it. Null: none did.';

insert into owned_buckets (bucket) select generate_series(0, 1023);

create function owned_buckets_rise() returns trigger language plpgsql as $$
begin
    if new.bucket <> old.bucket or new.epoch <= old.epoch then
        raise exception 'bucket % has epoch %, and may only get a higher one', old.bucket, old.epoch
            using errcode = 'integrity_constraint_violation';
    end if;
    if old.owned and new.owned then
        raise exception 'bucket % is owned already', old.bucket using errcode = 'integrity_constraint_violation';
    end if;
    return new;
end
$$;
comment on function owned_buckets_rise() is 'Keeps an epoch from being used twice.';
create trigger owned_buckets_rise before update on owned_buckets
    for each row execute function owned_buckets_rise();

create function owned_buckets_stay() returns trigger language plpgsql as $$
begin
    raise exception 'buckets are not removed'
        using errcode = 'integrity_constraint_violation', hint = 'Give a bucket up by change_ownership().';
end
$$;
comment on function owned_buckets_stay() is 'Keeps the epoch of every bucket.';
create trigger owned_buckets_stay before delete or truncate on owned_buckets
    for each statement execute function owned_buckets_stay();

-- It is stable, so it looks in the snapshot of the statement that calls it, and is called once, before a row is read. It
-- raises rather than answers false: fewer rows would be read as "refused", "lost race" or "missing".
create function require_ownership(buckets smallint[], epochs bigint[]) returns boolean language plpgsql stable as $$
declare
    refused smallint[];
begin
    select array_agg(n.bucket) into refused
      from unnest(buckets, epochs) as n (bucket, epoch)
     where not exists (select from owned_buckets o where o.bucket = n.bucket and o.epoch = n.epoch and o.owned);
    if refused is not null or buckets is null then
        raise exception 'this database does not own buckets % at the epochs that are named', refused
            using errcode = 'SB001',
                  hint = 'Read owned_buckets of every shard again, and repeat the work of these buckets.';
    end if;
    return true;
end
$$;
comment on function require_ownership(smallint[], bigint[]) is 'True; raises SB001 unless each of these buckets is owned here at its epoch.';

create function change_ownership(
    buckets smallint[], known bigint[], epochs bigint[], owned boolean, peer text
) returns void language plpgsql as $$
declare
    changed bigint;
begin
    -- In one order, so that two changes cannot deadlock.
    perform 1 from owned_buckets o where o.bucket = any (buckets) order by o.bucket for update;
    update owned_buckets o
       set epoch = n.epoch, owned = change_ownership.owned, peer = change_ownership.peer
      from unnest(buckets, known, epochs) as n (bucket, known, epoch)
     where o.bucket = n.bucket and o.epoch = n.known;
    get diagnostics changed = row_count;
    if changed is distinct from cardinality(buckets)::bigint then
        raise exception 'of % buckets % have the epoch that is known', cardinality(buckets), changed
            using errcode = 'SB002',
                  hint = 'Somebody else has changed them. Nothing was changed now: read owned_buckets again.';
    end if;
end
$$;
comment on function change_ownership(smallint[], bigint[], bigint[], boolean, text) is
    'Gives buckets up, or takes them: all of them, or none (SB002) when one has not the epoch that is known.';

grant select on owned_buckets to payments_svc, coro_checker;
