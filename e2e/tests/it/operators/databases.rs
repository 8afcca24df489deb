//! A database that is closed by hand, and opened by `recover`: who did it and why is on OperatorTopic.

use coroctl::databases::connect;
use jiff::Timestamp;
use tokio::process::Command;

use super::command::emitted;
use crate::harness::{Harness, WAIT_TIMEOUT, binary};

const CLOSE: &str = "
    update incarnations set incarnation = incarnation || ' closed at ' || now(), operator = 'bob', reason = 'disk doubtful'
     where incarnation = incarnation()";

/// So that a recovery that fails here leaves the others a database that is open.
const OPEN: &str = "
    insert into incarnations (incarnation, operator, reason) values (incarnation(), 'e2e', 'its recovery failed')
    on conflict do nothing";

#[tokio::test]
async fn who_closed_and_who_opened_a_database_is_emitted() {
    let harness = Harness::alone().await;
    let since = Timestamp::now();
    let (server, _) = harness.stack.postgres_admin_url.rsplit_once('/').unwrap();
    let owner = connect(&format!("{server}/balance")).await.unwrap();
    let incarnation: String = owner.query_one("select incarnation()", &[]).await.unwrap().get(0);
    assert_eq!(owner.execute(CLOSE, &[]).await.unwrap(), 1, "the database was open");

    let closed = emitted(&harness, since, "database.closed.v1", &incarnation).await;
    assert_eq!((&closed["operator"], &closed["reason"]), (&"bob".into(), &"disk doubtful".into()));

    // Nothing was lost, and what others have forged before is not its concern.
    let flags = ["exec", "balance-svc", "recover", "--operator=alice", "--reason=disk looked at"];
    let recovery = Command::new(binary("stack")).args(flags).arg(format!("--since={since}")).output();
    let output = tokio::time::timeout(WAIT_TIMEOUT, recovery).await;
    owner.execute(OPEN, &[]).await.unwrap();
    let output = output.unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let opened = emitted(&harness, since, "database.opened.v1", &incarnation).await;
    assert_eq!((&opened["operator"], &opened["reason"]), (&"alice".into(), &"disk looked at".into()));
    let user = harness.client.user_with(1_000).await.unwrap();
    assert_eq!(harness.settle(user, "0812", 400).await["status"], "completed");
    harness.adds_up().await;
}
