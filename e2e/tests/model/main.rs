//! Model check

#![allow(clippy::unwrap_used)]

mod balance_db;
mod bounds;
mod coro;
mod gateway;
mod healing;
mod payments_db;
mod processor_db;
mod properties;
mod readers;
mod state;
mod tasks;
mod working;

use std::io::Write;
use std::time::Instant;

use stateright::{Checker, Model};

use crate::bounds::{Bounds, PLAIN};
use crate::coro::Coro;

#[test]
fn probe() {
    for (name, bounds) in [
        ("plain", PLAIN),
        ("retold", Bounds { retold: true, ..PLAIN }),
        ("races", Bounds { races: true, ..PLAIN }),
        ("races 2", Bounds { races: true, attempts: 2, ..PLAIN }),
        ("slot 2", Bounds { lost_slot: true, attempts: 2, ..PLAIN }),
        ("late 2 i2", Bounds { late: true, attempts: 2, inquiries: 2, ..PLAIN }),
        ("once", Bounds { keys: bounds::Keys::OnceVisible, timely: true, late: true, attempts: 2, ..PLAIN }),
        ("ignored", Bounds { keys: bounds::Keys::Ignored, timely: true, late: true, attempts: 2, ..PLAIN }),
        ("two plain", Bounds { amounts: &[5, 3], cancels: false, deposit: Some(7), ..PLAIN }),
        ("all 3", Bounds { retold: true, races: true, late: true, attempts: 3, faults: Some(2), ..PLAIN }),
        ("3", Bounds { attempts: 3, ..PLAIN }),
    ] {
        let coro = Coro { bounds, broken: None, reached: &[] };
        let begun = Instant::now();
        let checker = coro.checker().threads(2).spawn_bfs().join();
        let _ = writeln!(std::io::stderr(), "{name}: {} unique, {} total, depth {}, {:?}", checker.unique_state_count(), checker.state_count(), checker.max_depth(), begun.elapsed());
        for (name, path) in checker.discoveries() {
            let _ = writeln!(std::io::stderr(), "VIOLATED {name}: {:#?}\n{:?}", path.clone().into_actions(), path.last_state());
        }
    }
}
