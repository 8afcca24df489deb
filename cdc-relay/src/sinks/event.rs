//! An event on its way to a sink.

use crate::checkpoint::progress::TransactionSeq;
use crate::routes::route::{Plan, Record, Transaction};

/// A rendered row, with the transaction that it belongs to.
#[derive(Clone, Copy)]
pub struct Event<'a> {
    pub record: &'a Record,
    pub plan: &'a Plan,
    pub transaction: &'a Transaction,
    pub transaction_seq: TransactionSeq,
}
