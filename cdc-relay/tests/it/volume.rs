//! Tests transactions far larger than the limit of in-flight bytes.

use crate::harness::Harness;
use crate::load::under_load;

/// Ten times the in-flight limit, and room for the rest of the process: 40 MiB on an idle relay.
const RESIDENT_BYTES_MAX: u64 = 96 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_of_200_000_rows_is_emitted_whole_in_bounded_memory() {
    let mut harness = Harness::new("volume").await;
    let (relay, oracle, load) = under_load(&mut harness, false).await;
    let rows = "insert into items (owner, id, version, note)
                select 'v' || n % 16, n, 1, repeat('y', 300) from generate_series(1, 200000) n";
    harness.sql.batch_execute(rows).await.expect("200,000 rows");
    load.stop().await;
    let report = oracle.judge(&harness).await;
    let peak = relay.peak_memory();
    assert!(report.changes >= 200_000, "{report:?}");
    assert!(peak < RESIDENT_BYTES_MAX, "{} MiB", peak >> 20);
    drop(relay);
}
