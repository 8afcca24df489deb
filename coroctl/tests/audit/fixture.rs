//! Three databases with one payment in each end state, in which every check holds; a test plants what it likes in
//! transactions that are rolled back.

use sql::Database;
use sql::harness::Harness;
use tokio_postgres::{Client, Transaction};
use uuid::Uuid;

pub const COMPLETED: Uuid = Uuid::from_u128(0xA);
pub const DECLINED: Uuid = Uuid::from_u128(0xB);
pub const CANCELLED: Uuid = Uuid::from_u128(0xC);
pub const EXPIRED: Uuid = Uuid::from_u128(0xD);
pub const REJECTED: Uuid = Uuid::from_u128(0xE);
/// Completed after its outcome was unknown for a while.
pub const UNKNOWN_ONCE: Uuid = Uuid::from_u128(0xF);
/// Nobody's.
pub const STRANGER: Uuid = Uuid::from_u128(0xFF);

/// Each payment with the events it went through.
pub const PATHS: [(Uuid, &[&str]); 6] = [
    (COMPLETED, &["initiated", "authorized", "completed"]),
    (DECLINED, &["initiated", "authorized", "failed"]),
    (CANCELLED, &["initiated", "cancel_recorded", "cancel_requested", "cancelled"]),
    (EXPIRED, &["initiated", "authorized", "failed"]),
    (REJECTED, &["initiated", "rejected"]),
    (UNKNOWN_ONCE, &["initiated", "authorized", "outcome_unknown", "completed"]),
];

const PAYMENTS: &str = "
    insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount,
                          status, event, reason, version, initiated_at, expires_at, authorized_at, completed_at,
                          rejected_at, failed_at, cancelled_at, cancel_requested_at)
    select user_id::uuid, payment_id::uuid, 'key ' || amount, '\\x00', '0812', 'electricity', amount,
           status, status, reason, version, t, t + interval '15 min',
           case when status <> 'rejected' then t end, case status when 'completed' then t end,
           case status when 'rejected' then t end, case status when 'failed' then t end,
           case status when 'cancelled' then t end, case status when 'cancelled' then t end
      from (select timestamptz '2026-01-02 03:04:05.123456Z') as moment (t), (values
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', 100, 'completed', null, 3),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000b', 50, 'failed', 'declined:no', 3),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000c', 60, 'cancelled', 'cancelled', 4),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000d', 70, 'failed', 'expired', 3),
           ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-00000000000e', 500, 'rejected', 'insufficient_funds', 2),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000f', 30, 'completed', null, 4)
           ) as p (user_id, payment_id, amount, status, reason, version)";

const BALANCE: &str = "
    insert into accounts (user_id, available, held, last_entry_no) values
        ('00000000-0000-0000-0000-000000000001', 870, 0, 11), ('00000000-0000-0000-0000-000000000002', 10, 0, 1);
    insert into ledger (user_id, payment_id, phase, kind, amount, service_id, reason, entry_no, available_after,
                        held_after)
    select user_id::uuid, payment_id::uuid, phase, kind, amount, 'electricity', reason, entry_no, available, held
      from (values
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-0000000000d1', 1, 'deposit', 1000, null, 1, 1000, 0),
           ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-0000000000d2', 1, 'deposit', 10, null, 1, 10, 0),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', 1, 'hold', 100, null, 2, 900, 100),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000a', 2, 'capture', 100, null, 3, 900, 0),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000b', 1, 'hold', 50, null, 4, 850, 50),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000b', 2, 'release', 50, 'declined:no', 5, 900, 0),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000c', 1, 'hold', 60, null, 6, 840, 60),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000c', 2, 'release', 60, 'cancelled', 7, 900, 0),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000d', 1, 'hold', 70, null, 8, 830, 70),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000d', 2, 'release', 70, 'expired', 9, 900, 0),
           ('00000000-0000-0000-0000-000000000002', '00000000-0000-0000-0000-00000000000e', 1, 'rejection', 500, 'insufficient_funds', null, null, null),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000f', 1, 'hold', 30, null, 10, 870, 30),
           ('00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-00000000000f', 2, 'capture', 30, null, 11, 870, 0)
           ) as l (user_id, payment_id, phase, kind, amount, reason, entry_no, available, held)";

const PROCESSOR: &str = "
    insert into charges (payment_id, user_id, client_number, service_id, amount, status, exposed, reason, version,
                         provider_reference, lease_until, decided_at)
    select payment_id::uuid, '00000000-0000-0000-0000-000000000001', '0812', 'electricity', amount, status, exposed,
           reason, version, case status when 'succeeded' then 'ch_' || amount end, now(), now()
      from (values
           ('00000000-0000-0000-0000-00000000000a', 100, 'succeeded', false, null, 2),
           ('00000000-0000-0000-0000-00000000000b', 50, 'declined', false, 'no', 2),
           ('00000000-0000-0000-0000-00000000000c', 60, 'cancelled', false, 'cancel_requested', 1),
           ('00000000-0000-0000-0000-00000000000d', 70, 'expired', false, 'deadline_passed', 1),
           ('00000000-0000-0000-0000-00000000000f', 30, 'succeeded', true, null, 3)
           ) as c (payment_id, amount, status, exposed, reason, version)";

/// Databases of this test's own.
pub struct Fixture {
    harnesses: [Harness; 3],
}

impl Fixture {
    pub async fn new() -> Self {
        let mut harnesses = Vec::new();
        for (kind, rows) in
            [(Database::Payments, PAYMENTS), (Database::Balance, BALANCE), (Database::Processor, PROCESSOR)]
        {
            let harness = Harness::new(kind).await.unwrap();
            superuser(&harness).await.batch_execute(rows).await.unwrap();
            harnesses.push(harness);
        }
        Self { harnesses: harnesses.try_into().ok().unwrap() }
    }

    /// Sessions that may do anything: payments, balance, processor.
    pub async fn superusers(&self) -> [Client; 3] {
        let [payments, balance, processor] = &self.harnesses;
        [superuser(payments).await, superuser(balance).await, superuser(processor).await]
    }

    /// As the role that only reads: payments, balance, processor.
    pub fn checker_urls(&self) -> [String; 3] {
        self.harnesses.each_ref().map(|harness| harness.url("coro_checker").unwrap())
    }

    pub async fn finish(self) {
        for harness in self.harnesses {
            harness.finish().await.unwrap();
        }
    }
}

/// A session that may do anything.
pub async fn superuser(harness: &Harness) -> Client {
    let (server, _) = harness.admin_url().rsplit_once('/').unwrap();
    sql::connect(&format!("{server}/{}", harness.name())).await.unwrap()
}

/// One transaction in each database: payments, balance, processor.
pub async fn begin(clients: &mut [Client; 3]) -> [Transaction<'_>; 3] {
    let [payments, balance, processor] = clients;
    [
        payments.transaction().await.unwrap(),
        balance.transaction().await.unwrap(),
        processor.transaction().await.unwrap(),
    ]
}
