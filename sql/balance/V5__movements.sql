-- The statement of a user: each movement of an account has a number, and the balances after it.
--
-- * A movement is an entry that moves money: of every kind but rejection. Its entry_no is 1, 2, 3 … per user, without gaps.
-- * balance-svc gives both under the account's lock, in the transaction that writes the entry.
-- * They do not leave this database: the publication names its columns, and stays as it is.
--
-- These are columns of ledger rather than a table of movements beside it. Both need an index by user and number. Beyond it
-- the columns cost 24 bytes per entry; a table costs a row of some 80 bytes and a WAL record of its own, which every
-- walsender decodes only to leave it out. What the columns cost is this migration. An update of the ledger's rows would be
-- emitted: every event once more, under the same id. The rows that an `alter table` copies are not, since logical decoding
-- leaves out the copies of a table that is rewritten. So the numbers come in by such a rewrite.
--
-- It locks both tables for as long as it takes to sort and to copy the ledger. Whoever books meanwhile waits, tries again
-- and goes on.

-- In the order in which a batch locks them.
lock table accounts, ledger in access exclusive mode;

-- An account's row has room for more than one further version, with this column as without it (fillfactor), and no index
-- names the column: updates stay heap-only.
alter table accounts add column last_entry_no bigint not null default 0;
comment on column accounts.last_entry_no is 'entry_no of the last movement; 0 before the first.';

-- The rows that are there, in the order of their transactions' beginnings. It may differ from the order in which they were
-- booked, so a balance in between may be one that never was, even below zero. The last one is the account's in any order.
create temporary table movement on commit drop as
select user_id, payment_id, phase,
       row_number() over so_far as entry_no,
       (sum(case kind when 'deposit' then amount when 'hold' then -amount when 'release' then amount else 0 end)
            over so_far)::bigint as available_after,
       (sum(case kind when 'hold' then amount when 'capture' then -amount when 'release' then -amount else 0 end)
            over so_far)::bigint as held_after
  from ledger
 where kind <> 'rejection'
window so_far as (partition by user_id order by created_at, phase, payment_id rows unbounded preceding);
create unique index on movement (user_id, payment_id, phase);
analyze movement;

-- A subquery may not stand in `using`; a function may.
create function pg_temp.movement_of(uuid, uuid, smallint) returns pg_temp.movement stable language sql as
    'select m.* from pg_temp.movement m where m.user_id = $1 and m.payment_id = $2 and m.phase = $3';

alter table ledger
    add column entry_no bigint,
    add column available_after bigint,
    add column held_after bigint;
alter table ledger
    alter column entry_no type bigint using (pg_temp.movement_of(user_id, payment_id, phase)).entry_no,
    alter column available_after type bigint using (pg_temp.movement_of(user_id, payment_id, phase)).available_after,
    alter column held_after type bigint using (pg_temp.movement_of(user_id, payment_id, phase)).held_after,
    add constraint ledger_movement_numbered check (
        num_nulls(entry_no, available_after, held_after) = case kind when 'rejection' then 3 else 0 end);
drop function pg_temp.movement_of(uuid, uuid, smallint);
comment on column ledger.entry_no is 'The number of the movement among the user''s, from 1, without gaps; null for a rejection.';
comment on column ledger.available_after is 'accounts.available after this movement.';
comment on column ledger.held_after is 'accounts.held after this movement.';
comment on constraint ledger_movement_numbered on ledger is 'A movement has its number and both balances, a rejection none.';

-- A page of the statement is a walk through this index. Entries are never updated, so it ends no heap-only update.
create unique index ledger_entry_no on ledger (user_id, entry_no) where entry_no is not null;

update accounts a
   set last_entry_no = m.last_entry_no
  from (select user_id, max(entry_no) as last_entry_no from movement group by user_id) m
 where a.user_id = m.user_id;

-- An instance of balance-svc from before this migration gives no number. The constraint would refuse its entries, and it
-- would park the messages that they come from. This error is none of the data: it tries again until it is replaced.
create function ledger_entry_no_missing() returns bigint language plpgsql as $$
begin
    raise exception 'an entry of the ledger was written without entry_no'
        using errcode = 'object_not_in_prerequisite_state',
              hint = 'An older balance-svc wrote it. Replace that instance: until then it tries again, and nothing is lost.';
end
$$;
comment on function ledger_entry_no_missing() is 'The default of ledger.entry_no: refuses writers that give none, not even null.';
alter table ledger alter column entry_no set default ledger_entry_no_missing();
