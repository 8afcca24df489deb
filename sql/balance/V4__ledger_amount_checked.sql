-- The entries that were there before the constraint: read beside those who book.
alter table ledger validate constraint ledger_amount_max;
