-- The largest balance. available + held never exceeds 2^53 - 1, the largest integer that every JSON reader keeps exact.
-- Only a deposit adds to that sum, so only a deposit can be refused for it: a hold and a release move money between the
-- two columns, a capture takes it out. Neither can overflow.

do $$
declare
    beyond record;
begin
    select user_id, available::numeric + held as balance into beyond
      from accounts where available > 9007199254740991 - held limit 1;
    if found then
        raise exception 'user % has a balance of %, more than the largest one, 9007199254740991', beyond.user_id, beyond.balance
            using hint = 'Nothing in this system pays out: bring the account below it by a correction that is booked in the ledger, then migrate again.';
    end if;
end
$$;

-- What leaves this database is exact for every reader, and no forged event can put in what is not. The rows that are
-- there are checked by the next migration, which holds up nobody. Locked before accounts, as by whoever books.
alter table ledger add constraint ledger_amount_max check (amount <= 9007199254740991) not valid;
comment on constraint ledger_amount_max on ledger is 'At most 2^53 - 1, as everywhere else.';

-- Written without a sum that could itself overflow.
alter table accounts add constraint accounts_balance_max check (available <= 9007199254740991 - held);
comment on constraint accounts_balance_max on accounts is 'available + held is at most 2^53 - 1; what a deposit is refused for (422 balance-limit).';
