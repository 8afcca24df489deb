//! The databases on a real server: who may do what, and that making them twice changes nothing.
//!
//! Needs a stack: `cargo stack up --servers && . .stack/env`.

// In a test an unwrap is an assertion.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicU32, Ordering};

use sql::{Database, Passwords};
use tokio_postgres::Client;
use tokio_postgres::error::{DbError, SqlState};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database of its own; dropped by the test when it passes, left to be looked at when it fails.
struct Harness {
    admin_url: String,
    passwords: Passwords,
    name: String,
}

impl Harness {
    async fn new(kind: Database) -> Self {
        let variable =
            |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: . .stack/env"));
        let name = format!("test_sql_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let passwords = Passwords::from_env().unwrap();
        let harness = Self { admin_url: variable("POSTGRES_ADMIN_URL"), passwords, name };
        sql::create_database(&harness.admin_url, kind, &harness.name).await.unwrap();
        harness
    }

    fn url(&self, role: &str) -> String {
        sql::database_url(&self.admin_url, &self.name, role, self.passwords.of(role).unwrap()).unwrap()
    }

    async fn login(&self, role: &str) -> Client {
        sql::connect(&self.url(role)).await.unwrap()
    }

    /// A session that acts as the owner of the tables.
    async fn owner(&self) -> Client {
        let (server, _) = self.admin_url.rsplit_once('/').unwrap();
        let client = sql::connect(&format!("{server}/{}", self.name)).await.unwrap();
        client.batch_execute("set role coro_owner").await.unwrap();
        client
    }

    async fn drop(self) {
        sql::drop_database(&self.admin_url, &self.name).await.unwrap();
    }
}

async fn refused(client: &Client, statement: &str) {
    let error = client.batch_execute(statement).await.expect_err(statement);
    assert_eq!(error.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE), "{statement}: {error}");
}

#[tokio::test]
async fn making_it_again_changes_nothing() {
    for &kind in Database::ALL {
        let harness = Harness::new(kind).await;
        sql::bootstrap(&harness.admin_url, &harness.passwords).await.unwrap();
        sql::create_database(&harness.admin_url, kind, &harness.name).await.unwrap();
        let checker = harness.login("coro_checker").await;
        let count = "select count(*) from refinery_schema_history";
        let applied: i64 = checker.query_one(count, &[]).await.unwrap().get(0);
        assert!(applied >= 1, "{kind:?}: {applied}");
        let published = "select count(*) from pg_publication where pubname = $1";
        let found: i64 = checker.query_one(published, &[&sql::PUBLICATION]).await.unwrap().get(0);
        assert_eq!(found, i64::from(kind != Database::Notifier), "{kind:?}");
        drop(checker);
        harness.drop().await;
    }
}

#[tokio::test]
async fn several_at_once_do_not_disturb_each_other() {
    let (one, two, three) = tokio::join!(
        Harness::new(Database::Payments),
        Harness::new(Database::Balance),
        Harness::new(Database::Processor)
    );
    let (a, b) = tokio::join!(
        sql::create_database(&one.admin_url, Database::Payments, &one.name),
        sql::create_database(&one.admin_url, Database::Payments, &one.name)
    );
    a.unwrap();
    b.unwrap();
    tokio::join!(one.drop(), two.drop(), three.drop());
}

#[tokio::test]
async fn a_new_database_is_open_and_a_service_cannot_change_which_incarnations_were() {
    for kind in [Database::Payments, Database::Balance, Database::Processor] {
        let harness = Harness::new(kind).await;
        let service = harness.login(kind.service_role()).await;
        let is_open = "select exists (select from incarnations i where i.incarnation = incarnation())";
        assert!(service.query_one(is_open, &[]).await.unwrap().get::<_, bool>(0), "{kind:?}");
        for change in
            ["update incarnations set reason = 'x'", "delete from incarnations", "truncate incarnations"]
        {
            refused(&service, change).await;
        }
        // A dump is restored into new tables, perhaps of the same database.
        let owner = harness.owner().await;
        let again =
            "create table other (like incarnations including all); insert into other table incarnations;
                     drop table incarnations; alter table other rename to incarnations;";
        owner.batch_execute(again).await.unwrap();
        assert!(!owner.query_one(is_open, &[]).await.unwrap().get::<_, bool>(0), "{kind:?}");
        drop((service, owner));
        harness.drop().await;
    }
}

#[tokio::test]
async fn whoever_opens_or_closes_a_database_leaves_an_act() {
    for kind in [Database::Payments, Database::Balance, Database::Processor] {
        let harness = Harness::new(kind).await;
        let (service, owner) = (harness.login(kind.service_role()).await, harness.owner().await);
        let acts = async || {
            let query = "select concat_ws(' ', act, operator, reason) from incarnation_acts
                          where incarnation = incarnation() order by acted_at";
            let rows = owner.query(query, &[]).await.unwrap();
            rows.iter().map(|row| row.get(0)).collect::<Vec<String>>()
        };
        assert_eq!(acts().await, [""; 0], "{kind:?}: the first opening is from before the table");
        let close = "update incarnations set incarnation = incarnation || ' closed at ' || now()";
        let open =
            "insert into incarnations (incarnation, operator, reason) values (incarnation(), 'ada', 'whole')
                    on conflict do nothing";
        // Closed twice, it is closed once. Opened twice, too.
        for statement in [close, close, open, open] {
            let client = if statement == open { &service } else { &owner };
            client.batch_execute(statement).await.unwrap();
        }
        // What changes no incarnation closes none.
        owner.batch_execute("update incarnations set reason = 'said better'").await.unwrap();
        let named =
            "update incarnations set incarnation = incarnation || ' closed at ' || now(), operator = 'bob',
                     reason = 'disk doubtful' where incarnation = incarnation()";
        owner.batch_execute(named).await.unwrap();
        service.batch_execute(open).await.unwrap();
        owner.batch_execute("delete from incarnations").await.unwrap();
        let role: String = owner.query_one("select session_user::text", &[]).await.unwrap().get(0);
        let unnamed = format!("closed {role} No reason was given.");
        let expected =
            [&unnamed, "opened ada whole", "closed bob disk doubtful", "opened ada whole", &unnamed];
        assert_eq!(acts().await, expected, "{kind:?}");
        drop((service, owner));
        harness.drop().await;
    }
}

#[tokio::test]
async fn a_service_cannot_remove_what_it_wrote() {
    for (kind, table) in [
        (Database::Payments, "payments"),
        (Database::Balance, "ledger"),
        (Database::Processor, "charges"),
        (Database::Fraud, "alerts"),
    ] {
        let harness = Harness::new(kind).await;
        let service = harness.login(kind.service_role()).await;
        for table in [table, "parked"] {
            service.batch_execute(&format!("select from {table}")).await.unwrap();
            refused(&service, &format!("delete from {table}")).await;
            refused(&service, &format!("truncate {table}")).await;
        }
        refused(&service, "create table extra ()").await;
        refused(&service, "update parked set reason = ''").await;
        for reader in ["coro_checker", "coro_relay"] {
            let reader = harness.login(reader).await;
            reader.batch_execute(&format!("select from {table}")).await.unwrap();
            refused(&reader, &format!("insert into {table} default values")).await;
        }
        drop(service);
        harness.drop().await;
    }
}

#[tokio::test]
async fn what_operators_did_is_append_only_and_a_resolution_takes_two_of_them() {
    for (kind, tables) in [
        (Database::Payments, &["parked_acts", "incarnation_acts"][..]),
        (Database::Balance, &["parked_acts", "incarnation_acts"]),
        (
            Database::Processor,
            &["parked_acts", "incarnation_acts", "resolutions", "resolution_confirmations"],
        ),
    ] {
        let harness = Harness::new(kind).await;
        let service = harness.login(kind.service_role()).await;
        for table in tables {
            service.batch_execute(&format!("select from {table}")).await.unwrap();
            refused(&service, &format!("update {table} set reason = 'another'")).await;
            refused(&service, &format!("delete from {table}")).await;
            harness.login("coro_checker").await.batch_execute(&format!("select from {table}")).await.unwrap();
        }
        harness.drop().await;
    }
    let harness = Harness::new(Database::Processor).await;
    let service = harness.login("processor_svc").await;
    let id = "00000000-0000-0000-0000-000000000001";
    let propose = format!(
        "insert into resolutions (resolution_id, payment_id, user_id, client_number, service_id, amount, evidence, operator,
                                  reason)
         values ('{id}', '{id}', '{id}', '1', 'power', 1, 'never_made', 'alice', 'seen')"
    );
    service.batch_execute(&propose).await.unwrap();
    for (proposed_by, operator, constraint) in [
        ("alice", "alice", "resolution_confirmations_by_another"),
        ("bob", "alice", "resolution_confirmations_of_proposal"),
        ("alice", "Alice", "resolution_confirmations_operator_name"),
    ] {
        let confirm = format!(
            "insert into resolution_confirmations (resolution_id, proposed_by, operator, reason, outcome, after)
             values ('{id}', '{proposed_by}', '{operator}', 'seen too', 'applied', '{{}}')"
        );
        let error = service.batch_execute(&confirm).await.expect_err(constraint);
        assert_eq!(error.as_db_error().and_then(DbError::constraint), Some(constraint), "{error}");
    }
    drop(service);
    harness.drop().await;
}

#[tokio::test]
async fn the_ledger_is_append_only() {
    let harness = Harness::new(Database::Balance).await;
    let service = harness.login("balance_svc").await;
    refused(&service, "update ledger set amount = 1").await;
    harness.drop().await;
}

/// As V5 finds a ledger: two users with movements, a third who was only ever rejected.
const BEFORE_MOVEMENTS: &str = "
    alter table ledger drop column entry_no, drop column available_after, drop column held_after;
    drop function ledger_entry_no_missing();
    alter table accounts drop column last_entry_no;
    insert into accounts (user_id, available, held)
    values ('00000000-0000-0000-0000-000000000001', 70, 20), ('00000000-0000-0000-0000-000000000002', 5, 0);
    insert into ledger (user_id, payment_id, phase, kind, amount, reason, created_at)
    select ('00000000-0000-0000-0000-00000000000' || user_no)::uuid,
           ('00000000-0000-0000-0000-0000000000' || payment)::uuid, phase, kind, amount, reason,
           timestamptz '2026-01-02 03:04:00Z' + moment * interval '1 second'
      from (values (1, '0a', 2, 'capture',   10,  null,                3),
                   (1, '0b', 1, 'hold',      20,  null,                3),
                   (1, '0c', 1, 'rejection', 999, 'insufficient_funds', 2),
                   (1, '0a', 1, 'hold',      10,  null,                2),
                   (1, 'd1', 1, 'deposit',   100, null,                1),
                   (2, '0e', 2, 'release',   5,   'expired',           1),
                   (2, '0e', 1, 'hold',      5,   null,                1),
                   (2, 'd2', 1, 'deposit',   5,   null,                0),
                   (3, '0f', 1, 'rejection', 1,   'unknown_account',   1))
           as e (user_no, payment, phase, kind, amount, reason, moment)";

/// Rows that a slot has for the publication, since it was last asked.
async fn published_rows(admin: &Client, slot: &str) -> i64 {
    // Of the messages of pgoutput: I(nsert), U(pdate), D(elete).
    let rows = "select count(*) from pg_logical_slot_get_binary_changes($1, null, null, 'proto_version', '1',
                                                                        'publication_names', 'coro_events')
                where get_byte(data, 0) in (ascii('I'), ascii('U'), ascii('D'))";
    admin.query_one(rows, &[&slot]).await.unwrap().get(0)
}

#[tokio::test]
async fn entries_from_before_movements_are_numbered_and_none_is_published_again() {
    let harness = Harness::new(Database::Balance).await;
    let owner = harness.owner().await;
    owner.batch_execute(BEFORE_MOVEMENTS).await.unwrap();
    let (server, _) = harness.admin_url.rsplit_once('/').unwrap();
    let admin = sql::connect(&format!("{server}/{}", harness.name)).await.unwrap();
    let slot = format!("slot_{}", harness.name);
    admin.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.unwrap();

    let migration = include_str!("../balance/V5__movements.sql");
    owner.batch_execute(&format!("begin; {migration}; commit")).await.unwrap();
    assert_eq!(published_rows(&admin, &slot).await, 0);
    owner.batch_execute("update ledger set traceparent = null where kind = 'deposit'").await.unwrap();
    assert_eq!(published_rows(&admin, &slot).await, 2, "the slot shows what is published");

    let entries = "
        select concat_ws(' ', right(user_id::text, 1), entry_no, kind, available_after, held_after)
          from ledger order by user_id, entry_no nulls last";
    let rows = owner.query(entries, &[]).await.unwrap();
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let expected = [
        "1 1 deposit 100 0",
        "1 2 hold 90 10",
        "1 3 hold 70 30",
        "1 4 capture 70 20",
        "1 rejection",
        "2 1 deposit 5 0",
        "2 2 hold 0 5",
        "2 3 release 5 0",
        "3 rejection",
    ];
    assert_eq!(found, expected);
    let accounts = "select last_entry_no from accounts order by user_id";
    let rows = owner.query(accounts, &[]).await.unwrap();
    let last: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(last, [4, 3]);
    drop((owner, admin));
    harness.drop().await;
}

#[tokio::test]
async fn a_movement_without_its_number_is_refused() {
    let harness = Harness::new(Database::Balance).await;
    let service = harness.login("balance_svc").await;
    let insert = async |column: &str, value: &str| {
        let statement = format!(
            "insert into ledger (user_id, payment_id, phase, kind, amount{column})
             values (gen_random_uuid(), gen_random_uuid(), 1, 'hold', 1{value})"
        );
        service.batch_execute(&statement).await.unwrap_err().code().cloned()
    };
    // By a service of an older release, which tries again after this error and parks nothing.
    assert_eq!(insert("", "").await, Some(SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE));
    assert_eq!(insert(", entry_no", ", null").await, Some(SqlState::CHECK_VIOLATION));
    assert_eq!(insert(", entry_no", ", 1").await, Some(SqlState::CHECK_VIOLATION), "without balances");
    drop(service);
    harness.drop().await;
}

#[tokio::test]
async fn a_service_does_not_reach_the_database_of_another() {
    let harness = Harness::new(Database::Payments).await;
    for role in ["balance_svc", "processor_svc", "notifier", "fraud"] {
        let error = sql::connect(&harness.url(role)).await.map(|_| ()).expect_err(role);
        assert!(format!("{error:#}").contains("permission denied"), "{role}: {error:#}");
        assert!(!format!("{error:#}").contains(harness.passwords.of(role).unwrap()));
    }
    harness.drop().await;
}

#[tokio::test]
async fn a_password_opens_its_own_role_only() {
    let harness = Harness::new(Database::Payments).await;
    let roles = || sql::ROLES.iter().filter(|role| role.login).map(|role| role.name);
    for role in roles() {
        let secret = harness.passwords.of(role).unwrap();
        for other in roles().chain(["postgres", "coro_owner"]).filter(|other| *other != role) {
            let url = sql::database_url(&harness.admin_url, &harness.name, other, secret).unwrap();
            let error = sql::connect(&url).await.map(drop).expect_err(other);
            let code = error.downcast_ref::<tokio_postgres::Error>().and_then(|error| error.code());
            assert_eq!(code, Some(&SqlState::INVALID_PASSWORD), "{role} as {other}: {error:#}");
        }
    }
    harness.drop().await;
}

#[tokio::test]
async fn demo_services_are_added_once() {
    let harness = Harness::new(Database::Payments).await;
    sql::seed(&harness.admin_url, &harness.name).await.unwrap();
    let owner = harness.owner().await;
    owner.batch_execute("update services set enabled = false where service_id = 'water'").await.unwrap();
    sql::seed(&harness.admin_url, &harness.name).await.unwrap();
    let enabled = "select service_id from services where enabled order by 1";
    let rows = owner.query(enabled, &[]).await.unwrap();
    let names: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(names, ["electricity", "mobile"], "what an operator changed stays changed");
    drop(owner);
    harness.drop().await;
}

/// A service that came back would begin at version 1 again: another content under an id that is known.
#[tokio::test]
async fn services_are_disabled_and_never_removed() {
    let harness = Harness::new(Database::Payments).await;
    sql::seed(&harness.admin_url, &harness.name).await.unwrap();
    let owner = harness.owner().await;
    let count =
        async || owner.query_one("select count(*) from services", &[]).await.unwrap().get::<_, i64>(0);
    let before = count().await;
    for removal in ["delete from services where service_id = 'water'", "truncate services cascade"] {
        let error = owner.batch_execute(removal).await.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::INTEGRITY_CONSTRAINT_VIOLATION), "{removal}: {error:?}");
    }
    assert_eq!(count().await, before);
    drop(owner);
    harness.drop().await;
}

#[tokio::test]
async fn a_database_goes_with_its_sessions_and_slots() {
    let harness = Harness::new(Database::Payments).await;
    let relay = harness.login("coro_relay").await;
    let slot = format!("slot_{}", harness.name);
    relay.execute("select pg_create_logical_replication_slot($1, 'pgoutput')", &[&slot]).await.unwrap();
    sql::drop_database(&harness.admin_url, &harness.name).await.unwrap();
    let admin = sql::connect(&harness.admin_url).await.unwrap();
    let left = "select count(*) from pg_replication_slots where slot_name = $1";
    assert_eq!(admin.query_one(left, &[&slot]).await.unwrap().get::<_, i64>(0), 0);
    harness.drop().await; // missing is fine
}

#[tokio::test]
async fn what_is_not_ours_is_not_dropped() {
    let admin_url = std::env::var("POSTGRES_ADMIN_URL").unwrap();
    for name in ["postgres", "template1", "x\"; drop role coro_owner; --"] {
        assert!(sql::drop_database(&admin_url, name).await.is_err(), "{name}");
    }
}
