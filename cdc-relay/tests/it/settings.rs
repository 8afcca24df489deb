//! Tests settings of a role, a database or a server that would end a session, hide rows, or change printed values.

use crate::harness::{Harness, SCHEMA, connect, ended, eventually, with_database};
use crate::kafka;

/// Version of the server, and a setting that a role may have. Those that the relay can only set once it has signed in leave it time
/// for that.
const HOSTILE: [(i32, &str, &str); 21] = [
    (14, "statement_timeout", "'1ms'"),
    (14, "lock_timeout", "'1ms'"),
    (14, "idle_in_transaction_session_timeout", "'1ms'"),
    (14, "idle_session_timeout", "'1s'"),
    (17, "transaction_timeout", "'1s'"),
    (14, "wal_sender_timeout", "'300ms'"),
    (14, "default_transaction_read_only", "on"),
    (14, "default_transaction_isolation", "'serializable'"),
    (14, "default_transaction_deferrable", "on"),
    (14, "row_security", "on"),
    (14, "synchronous_commit", "off"),
    (14, "search_path", "'nowhere'"),
    (14, "extra_float_digits", "'-10'"),
    (14, "bytea_output", "'escape'"),
    (14, "\"DateStyle\"", "'German'"),
    (14, "\"IntervalStyle\"", "'sql_standard'"),
    (14, "\"TimeZone\"", "'Asia/Kathmandu'"),
    (14, "quote_all_identifiers", "on"),
    (14, "transform_null_equals", "on"),
    (14, "standard_conforming_strings", "off"),
    (14, "tcp_user_timeout", "'500ms'"),
];

/// A harness whose relay signs in as a role that everything is set for.
async fn hostile(test: &str) -> Harness {
    let mut harness = Harness::bare(test).await;
    harness.sql.batch_execute(SCHEMA).await.expect("schema");
    let version: i32 = harness
        .sql
        .query_one("select current_setting('server_version_num')::int / 10000", &[])
        .await
        .expect("version")
        .get(0);
    let role = harness.name.clone();
    let mut sql = format!("create role {role} superuser login password 'p';");
    for (_, name, value) in HOSTILE.iter().filter(|(since, ..)| *since <= version) {
        sql += &format!("alter role {role} in database {} set {name} = {value};", harness.name);
    }
    harness.sql.batch_execute(&sql).await.expect("the role");
    let (_, server) = harness.servers.postgres.rsplit_once('@').expect("a login");
    let url = with_database(&format!("postgres://{role}:p@{server}"), &harness.name);
    harness.overrides.push(("IT_URL", url));
    harness
        .routes(&harness.default_routes().replace("name = \"items\"", "name = \"items\"\nsnapshot = true"));
    harness
}

async fn drop_role(harness: &Harness) {
    let admin = connect(&harness.servers.postgres).await;
    // Its sessions may take a moment to end.
    eventually("the role to be dropped", || async {
        admin.batch_execute(&format!("drop role {}", harness.name)).await.ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_setting_of_a_role_is_in_the_way_of_first_start_stream_snapshot_or_resnapshot() {
    let mut harness = hostile("settings").await;
    let fill = "insert into items (owner, id, version, price, raw, at) values
                ('before', 1, 1, 0.1, '\\x00ff', '2026-01-02 03:04:05+00')";
    harness.sql.batch_execute(fill).await.expect("a row");
    // The server makes the slot only after this transaction.
    let mut other = connect(&harness.url).await;
    let open = other.transaction().await.expect("begin");
    open.batch_execute("insert into items (owner, id, version) values ('open', 1, 1)").await.expect("a row");
    let relay = harness.start();
    eventually("a wait for the slot that is longer than the time-outs", || async {
        let waits = "select 1 from pg_stat_activity
                     where datname = current_database() and query like 'CREATE_REPLICATION_SLOT%'
                       and wait_event_type = 'Lock' and clock_timestamp() - query_start > '1500 ms'";
        (!harness.sql.query(waits, &[]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
    open.commit().await.expect("commit");
    relay.streams().await;
    // Rows that come during the snapshot may be emitted twice: once from the table and once from the WAL.
    eventually("the snapshot", || async { relay.log().contains("snapshot done").then_some(()) }).await;
    // A transaction that takes longer to send than the time-out.
    let large = "insert into items (owner, id, version, note)
                 select 'large', n, 1, repeat('x', 200) from generate_series(1, 60000) n";
    harness.sql.batch_execute(large).await.expect("rows");
    harness.confirmed().await;
    // Two seconds lie between two checks: every session is idle for longer than the time-outs.
    harness.publication_checked().await;
    harness.row("after", 1, 1, "made").await;
    harness.confirmed().await;
    let events = kafka::read(&harness.topic());
    let of = |owner: &str| events.iter().filter(|event| event.key == owner).count();
    assert_eq!((of("large"), of("after"), of("before"), of("open")), (60_000, 1, 1, 1));
    let before = events.iter().find(|event| event.key == "before").expect("the row of before").json();
    assert_eq!(before["at"], "2026-01-02T03:04:05.000000Z");
    assert!(relay.metric("cdc_relay_sessions_total") < 2.0, "{}", relay.log());
    // Kafka may take a moment to elect the leader of a new topic, whatever the settings are.
    let log = relay.log();
    // The relay names the transaction that the slot waits for, which is this test's.
    let expected = ["NotLeaderForPartition", "begins after the transactions that are open now"];
    let troubles = log.lines().filter(|line| !expected.iter().any(|text| line.contains(text)));
    let troubles = troubles.filter(|line| {
        ["cannot be watched", "cannot be checked", "not streaming"].iter().any(|text| line.contains(text))
    });
    assert_eq!(troubles.count(), 0, "{log}");
    relay.stop().await;
    harness.slot_is_free().await;
    for (command, arguments) in
        [("doctor", &[][..]), ("status", &[]), ("resnapshot", &["--yes"]), ("verify", &[])]
    {
        let output = harness.command(command).args(arguments).output().expect("the program");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert_ne!(output.status.code(), Some(2), "{command}: {text}");
    }
    harness.slot_is_free().await;
    drop_role(&harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_setting_of_a_role_is_in_the_way_of_a_tail() {
    let harness = hostile("tail_settings").await;
    let url = harness.overrides[0].1.clone();
    let mut tail = std::process::Command::new(env!("CARGO_BIN_EXE_cdc-relay"))
        .args(["tail", &url, "--limit", "1", "--json"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("tail");
    eventually("a tail that reads for longer than the time-outs", || async {
        let reads = "select 1 from pg_stat_activity a join pg_replication_slots on active_pid = pid
                     where datname = current_database() and clock_timestamp() - backend_start > '2 seconds'";
        (!harness.sql.query(reads, &[]).await.expect("activity").is_empty()).then_some(())
    })
    .await;
    harness.row("a", 1, 1, "made").await;
    ended(&mut tail).await;
    let output = tail.wait_with_output().expect("tail");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("\"owner\":\"a\""), "{text}");
    drop_role(&harness).await;
}
