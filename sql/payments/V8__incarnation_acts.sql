-- What happens to incarnations leaves this database, as events on OperatorTopic: who opened it, and who closed it by hand.
--
-- * The acts are rows of their own. A closed incarnation may be opened again, and `incarnations` says only what is so now.
-- * A trigger writes them, in the transaction that opens or closes: neither `recover`, of this release or the one before, nor the
--   owner can leave it out.
-- * A restore or a promotion closes a database without a word in it. So nothing is emitted then; the opening that follows is.
-- * The owner who closes it says who and why:
--       update incarnations set incarnation = incarnation || ' closed at ' || now(), operator = 'ada', reason = '…'
--        where incarnation = incarnation();
--   Otherwise the act has the name of the role, and says that nobody gave a reason.
-- * The first opening is from before this table. A dump brings its acts along: its triggers are made after its rows.
create table incarnation_acts (
    act_id      uuid        not null default gen_random_uuid(),
    incarnation text        not null,
    act         text        not null,
    operator    text        not null,
    reason      text        not null,
    acted_at    timestamptz not null default now(),
    constraint incarnation_acts_pkey primary key (act_id),
    constraint incarnation_acts_act_known check (act in ('opened', 'closed')),
    constraint incarnation_acts_operator_named check (char_length(operator) between 1 and 64),
    constraint incarnation_acts_reason_given check (char_length(reason) between 1 and 500)
);
comment on table incarnation_acts is 'Append-only: each opening of this database, and each closing by hand, by whom and why.';
comment on column incarnation_acts.incarnation is 'The one that was opened or closed, as incarnation() answered then.';
comment on column incarnation_acts.operator is 'The person who acted, by the name they gave; of a closing without a name the role.';

create function record_incarnation_act() returns trigger language plpgsql as $$
declare
    named boolean;
begin
    if tg_op = 'INSERT' then
        insert into incarnation_acts (incarnation, act, operator, reason)
        values (new.incarnation, 'opened', new.operator, new.reason);
        return null;
    end if;
    -- Another incarnation than the present one was closed before.
    if old.incarnation <> incarnation() then
        return null;
    end if;
    if tg_op = 'UPDATE' then
        if new.incarnation = old.incarnation then
            return null;
        end if;
        named := (new.operator, new.reason) is distinct from (old.operator, old.reason);
    else
        named := false;
    end if;
    if named then
        insert into incarnation_acts (incarnation, act, operator, reason)
        values (old.incarnation, 'closed', new.operator, new.reason);
    else
        insert into incarnation_acts (incarnation, act, operator, reason)
        values (old.incarnation, 'closed', session_user, 'No reason was given.');
    end if;
    return null;
end
$$;
comment on function record_incarnation_act() is 'Writes the act of whoever opens or closes this database.';
create trigger record_incarnation_act after insert or update or delete on incarnations
    for each row execute function record_incarnation_act();

grant select, insert on incarnation_acts to payments_svc;
grant select on incarnation_acts to coro_checker, coro_relay;
alter publication coro_events add table incarnation_acts (act_id, incarnation, act, operator, reason, acted_at);
