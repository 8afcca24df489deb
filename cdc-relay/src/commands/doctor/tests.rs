//! Each check as a table: facts that are fine but for one thing, and what is said of it.

#[path = "tests/promotion.rs"]
mod promotion;

use super::facts::{Facts, OpenTransaction, Prepared, Role, Setting, Slot, Spill, Walsender};
use super::sinks::brokers::Topic;
use super::*;
use crate::checkpoint::chain_name::ChainName;
use crate::checkpoint::state::Phase;
use crate::postgres::facts::{self as contract, Column, Member, NamedTable, Publication, Table};
use crate::postgres::lsn::Lsn;
use crate::source::contract::fit::{self, PublishedTables};

const ROUTES: &str = r#"
[[topics]]
name = "orders"
partitions = 3

[[sources]]
name = "shop"
url = "postgres://relay@db/shop"
slot = "shop"
publication = "events"
event_source = "/shop"

[[sources.tables]]
name = "orders"
key = "{id}"
id = "orders/{id}/{version}"

[[sources.tables.routes]]
topic = "orders"
type = "order.v1"
"#;

fn table(name: &str) -> Table {
    let column = |name: &str, large| Column {
        name: name.to_owned(),
        type_oid: 20,
        kind: "bigint".to_owned(),
        large,
        published: true,
        ..Column::default()
    };
    let key = Some(vec!["id".to_owned()]);
    let itself = Member {
        schema: "public".to_owned(),
        name: name.to_owned(),
        kind: 'r',
        logged: true,
        identity: 'd',
        key: key.clone(),
        primary_key: key,
        ..Member::default()
    };
    let columns = vec![column("id", false), column("version", false), column("note", true)];
    Table { oid: 7, itself, is_published: true, selectable: true, columns, ..Table::default() }
}

/// The table with routes is not published, and is this instead.
fn absent(facts: &mut Facts, kind: Option<char>, logged: bool) {
    facts.contract.tables.clear();
    let (schema, name) = ("public".to_owned(), "orders".to_owned());
    facts.contract.named =
        vec![NamedTable { schema, name, kind, logged: kind.map(|_| logged), temporary: false, root: None }];
}

/// A server, a publication and a slot with which all is well.
fn fine() -> Facts {
    let setting = |name: &str, value: &str, unit: &str| {
        (name.to_owned(), Setting { value: value.to_owned(), unit: unit.to_owned() })
    };
    let slot = Slot {
        slot_name: "shop".to_owned(),
        slot_type: "logical".to_owned(),
        plugin: Some("pgoutput".to_owned()),
        database: Some("shop".to_owned()),
        active: true,
        active_pid: Some(7),
        restart_lsn: Some("0/100".to_owned()),
        confirmed_flush_lsn: Some("0/200".to_owned()),
        wal_status: Some("reserved".to_owned()),
        safe_wal_size: Some(100 << 30),
        ..Slot::default()
    };
    Facts {
        version: 180_000,
        version_text: "18.1".to_owned(),
        database: "shop".to_owned(),
        encoding: "UTF8".to_owned(),
        settings: [
            setting("wal_level", "logical", ""),
            setting("max_replication_slots", "10", ""),
            setting("max_wal_senders", "10", ""),
            setting("max_slot_wal_keep_size", "102400", "MB"),
            setting("idle_replication_slot_timeout", "0", "s"),
            setting("wal_sender_timeout", "60000", "ms"),
            setting("synchronous_commit", "on", ""),
            setting("fsync", "on", ""),
            setting("full_page_writes", "on", ""),
            setting("logical_decoding_work_mem", "65536", "kB"),
            setting("synchronized_standby_slots", "", ""),
            setting("synchronous_standby_names", "", ""),
            setting("wal_writer_delay", "200", "ms"),
            setting("max_connections", "100", ""),
            setting("superuser_reserved_connections", "3", ""),
        ]
        .into(),
        role: Role { name: "relay".to_owned(), replication: true, ..Role::default() },
        system_id: "1".to_owned(),
        timeline: 1,
        flush: "0/300".to_owned(),
        slots: vec![slot],
        publications: vec!["events".to_owned()],
        contract: contract::Facts {
            version: 180_000,
            wal_level: "logical".to_owned(),
            encoding: "UTF8".to_owned(),
            publication: Some(Publication {
                name: "events".to_owned(),
                insert: true,
                update: true,
                ..Publication::default()
            }),
            tables: vec![table("orders")],
            ..contract::Facts::default()
        },
        wal_rate: 1000.0,
        ..Facts::default()
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        system_id: "1".to_owned(),
        timeline: 1,
        slot: "shop".to_owned(),
        phase: Phase::Streaming,
        acknowledged: Lsn(0x200),
        sent_lsn: Lsn(0x200),
        chain_name: ChainName::read("s/1"),
        chain: Lsn(0x200),
        last: crate::checkpoint::state::CommitId::default(),
        vouched: Lsn(0x200),
        synchronous: false,
        routes: String::new(),
    }
}

/// The findings that are not fine, as (severity, check).
fn found(facts: &Facts) -> Vec<(Severity, &'static str)> {
    let routes = Routes::parse(ROUTES, |_| None).expect("routes");
    let routed = (&routes, &routes.sources[0]);
    let contract =
        Contract { publication: Some("events"), routed: Some(Routed { routes: routed.0, source: routed.1 }) };
    let relations: Vec<_> = facts.contract.tables.iter().map(Table::relation).collect();
    let published = PublishedTables { facts: &facts.contract, relations: &relations };
    let routed = crate::source::contract::Contract { routes: &routes, source: &routes.sources[0] };
    let mismatches = fit::all(routed, published, !facts.slots.is_empty());
    let findings = check(
        &Facts { mismatches, ..facts.clone() },
        &contract,
        Some("shop"),
        SavedCheckpoint::Saved(&checkpoint()),
    );
    let bad = findings.iter().filter(|finding| finding.severity > Severity::Ok);
    bad.inspect(|finding| assert!(!finding.why.is_empty() || !finding.fix.is_empty(), "{finding:?}"))
        .map(|finding| (finding.severity, finding.check))
        .collect()
}

#[test]
fn where_all_is_well_nothing_is_said() {
    assert_eq!(found(&fine()), []);
}

use Severity::{Warning, WouldLoseData, WouldNotWork};

fn set(facts: &mut Facts, name: &str, value: &str) {
    value.clone_into(&mut facts.settings.get_mut(name).expect("setting").value);
}

fn published(facts: &mut Facts) -> &mut Publication {
    facts.contract.publication.as_mut().expect("publication")
}

fn orders(facts: &mut Facts) -> &mut Table {
    &mut facts.contract.tables[0]
}

/// With a row filter that reads one column.
fn filtered(facts: &mut Facts, column: &str) {
    let table = orders(facts);
    (table.filter, table.filter_columns) = (Some(format!("({column} > 5)")), vec![column.to_owned()]);
}

/// With one partition, which has this key.
fn partitioned(facts: &mut Facts, key: Option<&str>) {
    let table = orders(facts);
    let name = "orders_1".to_owned();
    let key = key.map(|key| vec![key.to_owned()]);
    table.partitions = vec![Member { name, key: key.clone(), primary_key: key, ..table.itself.clone() }];
    table.itself.kind = 'p';
}

type Row = (fn(&mut Facts), Severity, &'static str);

/// A broken fact, and the finding for it.
const BROKEN: &[Row] = &[
    (|f| f.version = 130_000, Warning, "server.version"),
    (|f| set(f, "wal_level", "replica"), WouldNotWork, "server.wal_level"),
    (|f| f.encoding = "SQL_ASCII".to_owned(), WouldNotWork, "server.encoding"),
    (|f| f.role.replication = false, WouldNotWork, "role.replication"),
    (|f| set(f, "fsync", "off"), WouldLoseData, "server.fsync"),
    (|f| set(f, "full_page_writes", "off"), WouldLoseData, "server.full_page_writes"),
    (|f| set(f, "synchronous_commit", "off"), Warning, "server.synchronous_commit"),
    (|f| set(f, "wal_sender_timeout", "0"), Warning, "server.wal_sender_timeout"),
    (|f| set(f, "wal_sender_timeout", "2000"), Warning, "server.wal_sender_timeout"),
    (|f| f.senders = 11, WouldNotWork, "server.max_wal_senders"),
    (|f| (f.senders, f.slots[0].active) = (10, false), WouldNotWork, "server.max_wal_senders"),
    (|f| f.role.connection_limit = Some(0), WouldNotWork, "role.connections"),
    (|f| (f.role.connection_limit, f.role.connections) = (Some(9), 9), WouldNotWork, "role.connections"),
    (|f| (f.role.connection_limit, f.slots[0].active) = (Some(4), false), WouldNotWork, "role.connections"),
    (|f| f.room.database_limit = Some(0), WouldNotWork, "database.connections"),
    (|f| f.room.connections = 97, WouldNotWork, "server.max_connections"),
    (|f| f.room.connections = 94, Warning, "server.max_connections"),
    (|f| f.role.valid_for = Some(86_400), Warning, "role.valid_until"),
    (|f| f.role.valid_for = Some(-1), Warning, "role.valid_until"),
    (|f| set(f, "max_slot_wal_keep_size", "-1"), Warning, "retention.max_slot_wal_keep_size"),
    (|f| set(f, "max_slot_wal_keep_size", "1000"), Warning, "retention.max_slot_wal_keep_size"),
    // 100 GB at 2 MB/s last 14 hours, at 100 MB/s 17 minutes.
    (|f| f.wal_rate = 2e6, Warning, "retention.max_slot_wal_keep_size"),
    (|f| f.wal_rate = 1e8, Warning, "retention.max_slot_wal_keep_size"),
    (
        |f| set(f, "idle_replication_slot_timeout", "3600"),
        WouldLoseData,
        "retention.idle_replication_slot_timeout",
    ),
    (
        |f| set(f, "idle_replication_slot_timeout", "604800"),
        Warning,
        "retention.idle_replication_slot_timeout",
    ),
    (|f| f.contract.publication = None, WouldNotWork, "publication.exists"),
    (|f| published(f).insert = false, WouldLoseData, "publication.operations"),
    (|f| published(f).update = false, WouldLoseData, "publication.operations"),
    (|f| published(f).truncate = true, WouldNotWork, "publication.operations"),
    (|f| f.contract.tables.push(super::tests::table("other")), WouldNotWork, "table.routes"),
    (|f| absent(f, None, false), WouldNotWork, "table.exists"),
    (|f| absent(f, Some('v'), true), WouldNotWork, "table.exists"),
    (|f| absent(f, Some('r'), true), WouldLoseData, "table.published"),
    (|f| absent(f, Some('r'), false), WouldLoseData, "table.unlogged"),
    (|f| absent(f, Some('p'), true), WouldLoseData, "table.partitions"),
    (|f| orders(f).columns[1].published = false, WouldNotWork, "table.columns"),
    (|f| orders(f).itself.key = None, WouldNotWork, "table.identity"),
    (|f| (orders(f).itself.identity, orders(f).itself.key) = ('n', None), WouldNotWork, "table.identity"),
    (|f| partitioned(f, None), WouldNotWork, "table.identity"),
    (|f| partitioned(f, Some("version")), WouldNotWork, "table.identity"),
    (|f| f.toast = [("7".to_owned(), 8192)].into(), Warning, "table.large_values"),
    (|f| filtered(f, "version"), WouldNotWork, "table.row_filter"),
    (|f| orders(f).selectable = false, Warning, "role.select"),
    (|f| f.slots[0].active_pid = None, Warning, "slot.active"),
    (|f| f.slots[0].wal_status = Some("unreserved".to_owned()), WouldLoseData, "slot.wal_status"),
    (|f| f.slots[0].two_phase = true, Warning, "slot.two_phase"),
    (|f| f.slots[0].temporary = true, WouldLoseData, "slot.kind"),
    (|f| f.spills = [("shop".to_owned(), Spill { transactions: 1, bytes: 9 })].into(), Warning, "slot.spill"),
    (|f| f.slots[0].confirmed_flush_lsn = Some("0/280".to_owned()), WouldLoseData, "slot.checkpoint"),
    (|f| f.timeline = 2, WouldLoseData, "slot.checkpoint"),
    (
        |f| f.transactions.push(OpenTransaction { pid: 1, seconds: 900, ..OpenTransaction::default() }),
        Warning,
        "server.open_transaction",
    ),
    (
        |f| f.prepared.push(Prepared { gid: "g".to_owned(), seconds: 900, ..Prepared::default() }),
        Warning,
        "server.prepared_transaction",
    ),
];

#[test]
fn each_thing_that_is_wrong_is_named_once_and_with_its_weight() {
    for (index, (break_it, severity, check)) in BROKEN.iter().enumerate() {
        let mut facts = fine();
        break_it(&mut facts);
        let found = found(&facts);
        let worst = found.iter().filter(|(_, found)| found == check).max();
        assert_eq!(worst, Some(&(*severity, *check)), "row {index}: {found:?}");
    }
}

#[test]
fn limits_that_leave_room_or_do_not_bind_are_fine() {
    let fits: &[fn(&mut Facts)] = &[
        |f| (f.role.connection_limit, f.role.connections) = (Some(5), 4),
        |f| (f.role.connection_limit, f.role.superuser) = (Some(0), true),
        |f| (f.room.database_limit, f.role.superuser) = (Some(0), true),
        |f| (f.room.database_limit, f.room.database_connections) = (Some(50), 4),
        |f| f.room.connections = 90,
        |f| f.role.valid_for = Some(365 * 86_400),
        |f| f.senders = 10,
    ];
    for (index, change) in fits.iter().enumerate() {
        let mut facts = fine();
        change(&mut facts);
        assert_eq!(found(&facts), [], "row {index}");
    }
}

#[test]
fn a_slot_that_is_gone_is_a_loss_and_one_that_was_never_made_is_not() {
    let mut facts = fine();
    facts.slots.clear();
    assert_eq!(found(&facts), [(Severity::WouldLoseData, "slot.checkpoint")]);
    assert!(slot::slot(&facts, "shop", SavedCheckpoint::Nothing).iter().all(|f| f.severity == Severity::Ok));
    // A slot that no checkpoint names was perhaps read.
    let forgotten = slot::slot(&fine(), "shop", SavedCheckpoint::Nothing);
    assert!(forgotten.iter().any(|f| f.severity == Severity::WouldLoseData), "{forgotten:?}");
}

#[test]
fn a_standby_that_does_not_have_the_slot_is_noticed_from_17_on_by_its_settings() {
    let mut facts = fine();
    facts.standbys = vec!["replica".to_owned()];
    let checks = |facts: &Facts| {
        slot::failover(facts, Some("shop"), false).iter().map(|f| f.check).collect::<Vec<_>>()
    };
    assert_eq!(checks(&facts), ["failover.slot", "failover.synchronized_standby_slots"]);
    facts.slots[0].failover = true;
    facts.settings.get_mut("synchronized_standby_slots").expect("setting").value = "replica".to_owned();
    assert_eq!(checks(&facts), [""; 0]);
    facts.version = 160_000;
    assert_eq!(checks(&facts), ["failover.slot"]);
}

#[test]
fn the_standbys_are_judged_by_what_the_routes_file_asks_for() {
    let walsender =
        |state: &str| Walsender { state: Some(state.to_owned()), flushed: Some("0/300".to_owned()) };
    let hidden = Walsender::default();
    let (off, require) = (SynchronousRule::Off, SynchronousRule::Require);
    let table = [
        (off, "", vec![], None),
        (off, "", vec![walsender("async")], None),
        (off, "n2", vec![walsender("sync")], Some(Warning)),
        (require, "n2", vec![walsender("sync"), walsender("potential")], Some(Severity::Ok)),
        (require, "ANY 1 (n2, n3)", vec![walsender("quorum"), walsender("quorum")], Some(Severity::Ok)),
        (require, "", vec![walsender("async")], Some(WouldNotWork)),
        (require, "n2", vec![], Some(WouldNotWork)),
        (require, "n2", vec![walsender("potential")], Some(WouldNotWork)),
        (require, "ANY 2 (n2, n3)", vec![walsender("quorum")], Some(WouldNotWork)),
        // The row is there, and nothing in it.
        (require, "n2", vec![hidden], Some(WouldNotWork)),
    ];
    for (index, (rule, names, walsenders, expected)) in table.into_iter().enumerate() {
        let mut facts = Facts { walsenders, ..fine() };
        set(&mut facts, "synchronous_standby_names", names);
        let findings = standbys::standbys(&facts, rule);
        assert_eq!(findings.first().map(|finding| finding.severity), expected, "row {index}");
        assert!(findings.iter().all(|finding| finding.check == "source.synchronous"), "row {index}");
    }
    let mut facts = Facts { walsenders: vec![walsender("sync")], ..fine() };
    set(&mut facts, "synchronous_standby_names", "*");
    let severities: Vec<_> = standbys::standbys(&facts, require).iter().map(|f| f.severity).collect();
    assert_eq!(severities, [Severity::Ok, Warning], "the relay's own walsender is one, too");
}

#[test]
fn databases_of_one_kind_need_ids_and_a_server_that_knows_origins() {
    let found = |text: &str, version: u32| -> Vec<(Severity, &'static str)> {
        let routes = Routes::parse(text, |_| None).expect("routes");
        let facts = Facts { version, ..fine() };
        let findings = kinds::kinds(&facts, Routed { routes: &routes, source: &routes.sources[0] });
        findings.iter().map(|finding| (finding.severity, finding.check)).collect()
    };
    let without_id = ROUTES.replace("id = \"orders/{id}/{version}\"\n", "");
    assert_eq!(found(&without_id, 150_000), [], "a source without others of its kind");
    let (head, tables) = ROUTES.split_once("[[sources.tables]]").expect("tables");
    let (head, _) = head.split_once("[[sources]]").expect("sources");
    let tables = tables.replace("[[sources.", "[[kinds.");
    let of_a_kind = format!(
        "{head}[[kinds]]\nname = \"k\"\norigin = \"none\"\n[[kinds.tables]]{tables}\n\
         [[sources]]\nname = \"a\"\nkind = \"k\"\nurl = \"a\"\n[[sources]]\nname = \"b\"\nkind = \"k\"\nurl = \"b\"\n"
    );
    let (origin, ids) = ("source.origin", (Warning, "source.kind"));
    assert_eq!(found(&of_a_kind, 150_000), [(Warning, origin)]);
    assert_eq!(found(&of_a_kind, 160_000), [(Severity::Ok, origin)]);
    let without_id = of_a_kind.replace("id = \"orders/{id}/{version}\"\n", "");
    assert_eq!(found(&without_id, 160_000), [ids, (Severity::Ok, origin)]);
}

#[test]
fn without_routes_every_table_is_looked_at() {
    let mut facts = fine();
    facts.contract.publication = None;
    orders(&mut facts).itself.key = None;
    facts.mismatches = tables::harms(&facts.contract);
    let findings =
        check(&facts, &Contract { publication: None, routed: None }, None, SavedCheckpoint::NotRead);
    let bad: Vec<_> =
        findings.iter().filter(|f| f.severity > Severity::Ok).map(|f| (f.severity, f.check)).collect();
    assert_eq!(bad, [(Severity::Warning, "table.identity")]);
}

fn topic(settings: &[(&str, &str)]) -> Topic {
    let config = [
        ("cleanup.policy", "delete"),
        ("retention.ms", "-1"),
        ("retention.bytes", "-1"),
        ("min.insync.replicas", "2"),
        ("max.message.bytes", "1048588"),
        ("unclean.leader.election.enable", "false"),
    ];
    let config = config.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Topic { partitions: 3, replicas: 3, config: config.collect() }
}

#[test]
fn kafka_is_judged_by_what_an_acknowledged_record_survives() {
    let routes = Routes::parse(ROUTES, |_| None).expect("routes");
    let of = |name: &str, topic: Topic, brokers: usize| {
        let topics = [(name.to_owned(), topic)].into();
        let findings = sinks::brokers::check(
            &sinks::brokers::Facts { brokers, topics, ..sinks::brokers::Facts::default() },
            &routes,
        );
        let bad = findings.iter().filter(|f| f.severity > Severity::Ok);
        bad.map(|f| (f.severity, f.check)).collect::<Vec<_>>()
    };
    let one = |topic: Topic| Topic { partitions: 1, ..topic };
    let (state, dead) = ("cdc-relay.state", "cdc-relay.dead-letter");
    let compact = &[("cleanup.policy", "compact")];
    assert_eq!(of("orders", topic(&[]), 3), []);
    assert_eq!(of(state, one(topic(compact)), 3), []);
    assert_eq!(of(dead, one(topic(&[])), 3), []);
    let single = |topic: Topic| Topic { replicas: 1, ..topic };
    assert_eq!(of("orders", single(topic(&[])), 3), [(WouldLoseData, "kafka.replication")]);
    assert_eq!(of("orders", single(topic(&[])), 1), [(Warning, "kafka.replication")]);
    let table: &[(&str, &str, Severity, &str)] = &[
        ("min.insync.replicas", "1", Warning, "kafka.min_insync"),
        ("unclean.leader.election.enable", "true", WouldLoseData, "kafka.unclean_election"),
        ("max.message.bytes", "1000", Warning, "kafka.max_message_bytes"),
        ("cleanup.policy", "compact", Warning, "kafka.cleanup"),
        ("retention.ms", "604800000", Warning, "kafka.retention"),
        ("retention.ms", "60000", WouldLoseData, "kafka.retention"),
        ("retention.bytes", "1000", Warning, "kafka.retention"),
    ];
    for (name, value, severity, check) in table {
        assert_eq!(of("orders", topic(&[(name, value)]), 3), [(*severity, *check)], "{name}={value}");
    }
    let listed =
        ROUTES.replace("partitions = 3", "partitions = 3\nconfig = { \"cleanup.policy\" = \"compact\" }");
    let listed = Routes::parse(&listed, |_| None).expect("routes");
    for (config, expected) in [(compact.as_slice(), vec![]), (&[], vec!["kafka.cleanup"])] {
        let topics = [("orders".to_owned(), topic(config))].into();
        let facts = sinks::brokers::Facts { brokers: 3, topics, ..sinks::brokers::Facts::default() };
        let findings = sinks::brokers::check(&facts, &listed);
        let bad = findings.iter().filter(|f| f.severity > Severity::Ok);
        assert_eq!(
            bad.map(|f| f.check).collect::<Vec<_>>(),
            expected,
            "as the routes file lists it: {config:?}"
        );
    }
    assert_eq!(of("orders", one(topic(&[])), 3), [(Warning, "kafka.partitions")]);
    assert_eq!(of(state, one(topic(&[])), 3), [(WouldLoseData, "kafka.state")]);
    assert_eq!(of(state, topic(compact), 3), [(WouldNotWork, "kafka.state")]);
    let forgets = one(topic(&[("retention.ms", "60000")]));
    assert_eq!(of(dead, forgets, 3), [(WouldLoseData, "kafka.dead_letters")]);
    assert_eq!(of(dead, one(topic(compact)), 3), [(WouldLoseData, "kafka.dead_letters")]);
}

#[test]
fn the_report_puts_the_worst_first_and_each_fix_on_a_line_that_can_be_copied() {
    let long = "alter table public.a_table_with_a_rather_long_name replica identity full; -- and more text than a line takes";
    let findings = vec![
        Finding::ok("a", "fine thing", "yes"),
        Finding::warning("b", "doubtful thing", "perhaps").why("it may hurt").fix(long),
        Finding::would_lose_data("c", "bad thing", "no").why("it hurts").fix("mend it"),
    ];
    let section = Section { name: "database".to_owned(), place: "relay@db:5432/shop".to_owned(), findings };
    let report = Report::new(vec![section], vec!["Kafka".to_owned()]);
    assert_eq!(report.verdict, Severity::WouldLoseData);
    let text = report.text(80, false);
    let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part} is not in\n{text}"));
    assert!(at("bad thing") < at("doubtful thing") && at("doubtful thing") < at("fine thing"));
    assert!(text.lines().any(|line| line.trim() == long), "{text}");
    assert!(text.contains("Not checked: Kafka."));
    assert!(text.ends_with("1 would lose data, 0 would not work, 1 warning, 1 ok\n"), "{text}");
    let coloured = report.text(80, true);
    assert!(coloured.contains("\u{1b}[31mwould lose data\u{1b}[0m"), "{coloured:?}");
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["verdict"], "would_lose_data");
    assert_eq!(json["sections"][0]["findings"][0]["fix"][0], "mend it");
}
