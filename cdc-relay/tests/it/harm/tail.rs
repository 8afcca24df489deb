//! Tests that a tail never harms the database it watches.

use super::{LATER, SHAPES, application, goes_on, major, run};
use crate::commands::Tail;
use crate::harness::Harness;

#[tokio::test]
async fn a_tail_harms_nobody_whatever_the_tables_are() {
    for shape in SHAPES {
        let harness = Harness::bare("harmtail").await;
        if major(&harness).await < shape.from {
            continue;
        }
        run(&harness, shape.tables).await;
        let tail = Tail::start(&harness, &["--json"]);
        application(&harness, shape.name).await;
        drop(tail);
        let shape = shape.name.replace("next", "new");
        application(&harness, &format!("{shape} once the tail was killed")).await;
    }
}

#[tokio::test]
async fn a_tail_takes_a_table_out_again_when_it_begins_to_harm() {
    for (from, change) in LATER {
        for arguments in [&["--json"][..], &["--json", "--table", "t"]] {
            let harness = Harness::bare("harmtaillater").await;
            if major(&harness).await < *from {
                continue;
            }
            run(&harness, "create table t (n int primary key, v text); insert into t values (1, 'a')").await;
            let tail = Tail::start(&harness, arguments);
            run(&harness, change).await;
            goes_on(&harness, change).await;
            drop(tail);
        }
    }
}
