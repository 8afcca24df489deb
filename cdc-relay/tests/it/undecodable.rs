//! Changes that the server cannot decode: its error ends every session at the same place.

use std::time::{Duration, Instant};

use crate::proxy::Lump;
use crate::rig::{Rig, SCHEMA, Servers};

/// In a database whose encoding has bytes that are no character: a text of such a byte can be kept and never sent.
const WIN1252: &str = "template template0 encoding 'WIN1252' lc_collate 'C' lc_ctype 'C'";

async fn win1252(test: &str) -> Rig {
    let rig = Rig::like(Servers::shared(), test, WIN1252).await;
    rig.sql.batch_execute(SCHEMA).await.expect("schema");
    rig.routes(&rig.default_routes());
    rig
}

/// A row that cannot be decoded.
async fn undecodable(rig: &Rig) {
    let insert = "insert into items (owner, id, version, note) values ('a', 2, 1, chr(129))";
    rig.sql.batch_execute(insert).await.expect("a row");
}

/// The standstill it prevents: the error is in our own buffer, and the socket is waited for.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_comes_in_one_piece_with_the_start_is_noticed_at_once() {
    let mut rig = win1252("one_piece").await;
    let relay = rig.streaming().await;
    rig.row("a", 1, 1, "made").await;
    rig.confirmed().await;
    assert_eq!(relay.stop().await, Some(0));
    rig.slot_is_free().await;
    undecodable(&rig).await;
    let lump = Lump::to(rig.host(), "START_REPLICATION").await;
    rig.overrides.push(("IT_URL", rig.url_by(lump.address)));
    let relay = rig.start();
    let began = Instant::now();
    while !relay.get("/health").unwrap_or_default().contains("22P05") {
        let (report, log) = (relay.get("/health").unwrap_or_default(), relay.log());
        assert!(began.elapsed() < Duration::from_secs(15), "not noticed: {report}\n{log}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
