//! Tests `tail`: it shows each change and leaves nothing behind.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use crate::harness::{Harness, WAIT_TIMEOUT, ended, eventually};

pub struct Tail {
    child: Child,
    lines: Receiver<String>,
}

/// The lines of an output, which a thread reads to its end.
fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = channel();
    let read = move || {
        // Nobody may want the later lines.
        BufReader::new(output).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
    };
    std::thread::spawn(read);
    lines
}

impl Tail {
    /// Starts a tail and waits until it reads.
    pub fn start(harness: &Harness, arguments: &[&str]) -> Tail {
        let mut child = harness
            .command("tail")
            .arg(&harness.url)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("tail");
        let stderr = lines(child.stderr.take().expect("stderr"));
        let mut before = String::new();
        loop {
            let line =
                stderr.recv_timeout(WAIT_TIMEOUT).unwrap_or_else(|_| panic!("it does not read: {before}"));
            // One that had its rows at once may have ended before it could say that it reads.
            if line.starts_with("Reading.") || line.contains(" changes in ") {
                break;
            }
            before.push_str(&line);
        }
        let lines = lines(child.stdout.take().expect("stdout"));
        Tail { child, lines }
    }

    pub fn line(&self) -> String {
        self.lines.recv_timeout(WAIT_TIMEOUT).expect("a line")
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn left_behind(harness: &Harness) -> Vec<String> {
    let query = "select pubname::text from pg_publication where pubname like 'cdc_relay_tail%'
                 union all select slot_name::text from pg_replication_slots
                 where slot_name like 'cdc_relay_tail%' and database = current_database()";
    harness.sql.query(query, &[]).await.expect("catalog").iter().map(|row| row.get(0)).collect()
}

/// The server drops the slot a moment after its session has ended.
async fn nothing_left(harness: &Harness) {
    eventually("slot and publication of the tail to be dropped", || async {
        left_behind(harness).await.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn tail_shows_each_change_and_leaves_nothing_behind() {
    let harness = Harness::new("tail").await;
    let prepare = "create table keyless (n int); insert into keyless values (1);
                   create table whole (id int primary key, v text); alter table whole replica identity full;
                   insert into whole values (1, 'x')";
    harness.sql.batch_execute(prepare).await.expect("tables");
    let mut tail = Tail::start(&harness, &["--json", "--limit", "6"]);
    // The updates of a table without a key must not fail because it is published.
    harness
        .sql
        .batch_execute("update keyless set n = 2; delete from keyless")
        .await
        .expect("a writer goes on");
    let changes = "insert into items (owner, id, version, note) values ('a', 1, 1, 'x y');
                   update items set version = 2 where owner = 'a'; delete from items where owner = 'a';
                   update whole set v = 'y'; insert into keyless values (3); truncate keyless";
    harness.sql.batch_execute(changes).await.expect("changes");
    let lines: Vec<Value> = (0..6).map(|_| serde_json::from_str(&tail.line()).expect("an object")).collect();
    let shown: Vec<_> =
        lines.iter().map(|line| (line["table"].as_str(), line["operation"].as_str())).collect();
    let expected = [
        ("public.items", "insert"),
        ("public.items", "update"),
        ("public.items", "delete"),
        ("public.whole", "update"),
        ("public.keyless", "insert"),
        ("public.keyless", "truncate"),
    ];
    assert_eq!(shown, expected.map(|(table, operation)| (Some(table), Some(operation))));
    assert_eq!(lines[0]["after"]["note"], "x y");
    assert_eq!(lines[0]["key"], serde_json::json!({"owner": "a", "id": 1}));
    assert_eq!((&lines[3]["before"]["v"], &lines[3]["after"]["v"]), (&"x".into(), &"y".into()));
    assert_eq!(lines[3]["key"], serde_json::json!({"id": 1}));
    assert_eq!(ended(&mut tail.child).await.code(), Some(0));
    nothing_left(&harness).await;
}

#[tokio::test]
async fn a_tail_that_was_killed_leaves_no_slot_and_the_next_one_drops_its_publication() {
    let harness = Harness::new("tail_killed").await;
    let mut killed = Tail::start(&harness, &[]);
    killed.child.kill().expect("kill");
    killed.child.wait().expect("wait");
    eventually("the slot to be dropped", || async {
        let left = left_behind(&harness).await;
        // Two publications; a slot would be a third.
        (left.len() == 2).then_some(())
    })
    .await;
    let mut tail = Tail::start(&harness, &[]);
    harness.row("a", 1, 1, "made").await;
    assert!(tail.line().contains("transaction"));
    assert!(tail.line().contains("insert   items  owner=a  id=1  version=1"));
    assert_eq!(left_behind(&harness).await.len(), 3, "two publications and a slot, of the second tail");
    let pid = rustix::process::Pid::from_child(&tail.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("Ctrl-C");
    assert_eq!(ended(&mut tail.child).await.code(), Some(0));
    nothing_left(&harness).await;
}

#[tokio::test]
async fn a_slot_that_is_only_looked_at_stays_where_it_is() {
    let harness = Harness::new("tail_slot").await;
    let make = "select pg_create_logical_replication_slot($1, 'pgoutput')";
    harness.sql.execute(make, &[&harness.name]).await.expect("make");
    let (_, before) = harness.positions().await;
    harness.row("a", 1, 1, "made").await;
    for _ in 0..2 {
        let arguments = ["--json", "--publication", "events", "--from-slot", &harness.name, "--limit", "1"];
        let mut tail = Tail::start(&harness, &arguments);
        let line: Value = serde_json::from_str(&tail.line()).expect("an object");
        assert_eq!(line["after"]["owner"], "a", "an unconfirmed change is missing in a later tail");
        assert_eq!(ended(&mut tail.child).await.code(), Some(0));
        harness.slot_is_free().await;
    }
    assert_eq!(harness.positions().await.1, before);
}
