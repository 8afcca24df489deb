//! The violations: where each is planted, and which checks promise that it cannot be.

mod gateway;
mod money;
mod notifications;
mod ownership;
mod resolutions;
mod saga;
mod search;
mod transport;

use std::collections::BTreeMap;

use coroctl::audit::observed::DerivedData;
use coroctl::audit::read::events::FlaggedRecord;
use coroctl::audit::read::relay::{Checkpoint, Cluster, Slot};
use coroctl::audit::read::search::SearchDocuments;
use coroctl::owned_rows::Ownership;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::emissions::EmittedEvents;
use crate::fixture::{COMPLETED, DECLINED, UNKNOWN_ONCE};

/// Everything beside the databases: emitted as the rows say, charged as they say, and all is applied.
pub struct Harness {
    pub events: EmittedEvents,
    /// The gateway's export.
    pub lines: Vec<Value>,
    pub checkpoints: Vec<Checkpoint>,
    pub clusters: BTreeMap<&'static str, Vec<Cluster>>,
    pub ownership: BTreeMap<&'static str, Ownership>,
    pub dead_letters: Vec<FlaggedRecord>,
    pub lag: i64,
    pub queue_depth: u32,
    pub derived: DerivedData,
    pub explained: Vec<&'static str>,
    pub accepted: Vec<Uuid>,
}

/// A line of the gateway's export.
pub fn line(reference: &impl ToString, amount: i64, kind: &str) -> Value {
    json!({"reference": reference.to_string(), "amount": amount, "kind": kind, "at": "2026-01-02T03:04:05.123456Z"})
}

impl Harness {
    pub fn new(events: EmittedEvents, search: SearchDocuments) -> Self {
        let slot = |source: &str| format!("cdc_relay_{source}");
        let checkpoint = |source: &str| Checkpoint {
            source: source.to_owned(),
            slot: slot(source),
            system_id: "1".to_owned(),
            creating: false,
            acknowledged: 1_000,
        };
        let cluster = |source| {
            let slots = vec![Slot { name: slot(source), confirmed: 1_000, lost: false }];
            (source, vec![Cluster { shard: None, system_id: "1".to_owned(), slots }])
        };
        let sources = ["payments", "balance", "processor"];
        Self {
            events,
            // One surplus charge was given back.
            lines: vec![
                line(&COMPLETED, 100, "charge"),
                line(&UNKNOWN_ONCE, 30, "charge"),
                line(&UNKNOWN_ONCE, 30, "charge"),
                line(&UNKNOWN_ONCE, 30, "void"),
            ],
            checkpoints: sources.map(checkpoint).to_vec(),
            clusters: sources.map(cluster).into(),
            ownership: BTreeMap::new(),
            dead_letters: Vec::new(),
            lag: 0,
            queue_depth: 0,
            derived: DerivedData {
                search,
                notifications: notifications::of_all_ends(),
                ..DerivedData::default()
            },
            explained: Vec::new(),
            accepted: vec![COMPLETED, DECLINED],
        }
    }
}

/// Statements for each database, then whatever is done to the rest.
pub struct Plant {
    pub what: &'static str,
    pub complain: &'static [&'static str],
    pub payments: &'static str,
    pub balance: &'static str,
    pub processor: &'static str,
    pub plant: fn(&mut Harness),
}

/// Leaves everything as it is.
pub const NOTHING: Plant =
    Plant { what: "nothing", complain: &[], payments: "", balance: "", processor: "", plant: |_| {} };

/// One of the fixture's ids in SQL, by its end.
macro_rules! id {
    ($end:literal) => {
        concat!("'00000000-0000-0000-0000-0000000000", $end, "'")
    };
}
use id;

/// Every plant; the first is none.
pub fn all() -> impl Iterator<Item = &'static Plant> {
    let planted = [
        money::MONEY,
        gateway::GATEWAY,
        saga::SAGA,
        transport::TRANSPORT,
        search::SEARCH,
        notifications::NOTIFICATIONS,
        resolutions::RESOLUTIONS,
        ownership::OWNERSHIP,
    ];
    std::iter::once(&NOTHING).chain(planted.into_iter().flatten())
}
