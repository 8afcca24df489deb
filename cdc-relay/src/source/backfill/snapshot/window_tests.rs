use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[test]
fn what_a_query_sees_is_read_as_postgres_prints_it() {
    let visible: Visible = "10:14:10,12".parse().unwrap();
    for (xid, expected) in
        [(9, true), (10, false), (11, true), (12, false), (13, true), (14, false), (99, false)]
    {
        assert_eq!(visible.sees(xid), expected, "{xid}");
    }
    let nothing_runs: Visible = "14:14:".parse().unwrap();
    assert!(nothing_runs.sees(13) && !nothing_runs.sees(14));
    for bad in ["", "1", "1:x:", "a:1:", "1:2:3,x"] {
        assert!(bad.parse::<Visible>().is_err(), "{bad}");
    }
}

#[test]
fn ids_that_wrapped_around_are_compared_with_the_present() {
    let next = (7u64 << 32) + 5;
    let visible = Visible { oldest_running: next, next, running: Vec::new() };
    assert!(visible.sees(u32::MAX), "the last of the epoch before");
    assert!(visible.sees(4) && !visible.sees(5) && !visible.sees(6));
}

#[test]
fn a_window_that_lost_track_judges_nothing_until_it_is_opened_again() {
    let mut window = Window::default();
    window.changed(b"before", 1);
    assert!(!window.has(b"before"));
    window.open();
    window.changed(b"a", 1);
    assert!(window.is_open() && window.has(b"a"));
    window.lose_track();
    window.changed(b"b", 2);
    assert!(!window.is_open());
    window.open();
    assert!(window.is_open() && !window.has(b"a") && !window.has(b"b"));
}

#[test]
fn a_window_is_bounded() {
    let mut window = Window::default();
    window.open();
    for number in 0..(WINDOW_BYTES_MAX / KEY_OVERHEAD_BYTES) as u64 {
        window.changed(&number.to_be_bytes(), 1);
        assert!(window.bytes <= WINDOW_BYTES_MAX);
    }
    assert!(!window.is_open());
}

/// One committed transaction of a made-up server. Times are ticks; a row is a key, its state a version.
#[derive(Debug, Clone)]
struct Change {
    key: u8,
    /// When it takes its id.
    begins: u32,
    /// When its commit is in the WAL: the stream emits in this order.
    logged: u32,
    /// From when queries see it: never before, sometimes long after.
    visible: u32,
    version: u32,
}

/// Transactions that overlap as they may: those of a key one after the other, each after the one before is visible.
fn history() -> impl Strategy<Value = Vec<Change>> {
    prop::collection::vec((0..4u8, 0..6u32, 0..8u32, prop_oneof![3 => Just(0u32), 1 => 0..20u32]), 0..40)
        .prop_map(|plan| {
            let (mut free, mut versions, mut changes) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
            for (key, wait, work, lingers) in plan {
                let begins = free.get(&key).copied().unwrap_or(0) + wait;
                let logged = begins + work;
                let visible = logged + lingers;
                free.insert(key, visible);
                let version = versions.entry(key).and_modify(|version| *version += 1).or_insert(1);
                changes.push(Change { key, begins, logged, visible, version: *version });
            }
            changes
        })
}

/// By transaction: its id, in the order in which they begin.
fn ids(changes: &[Change]) -> Vec<u32> {
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by_key(|&index| (changes[index].begins, index));
    let mut ids = vec![0; changes.len()];
    for (id, index) in order.into_iter().enumerate() {
        ids[index] = 100 + id as u32;
    }
    ids
}

/// Returns the snapshot of a query at `now`. A transaction that begins at the same tick begins after it.
fn visible_at(changes: &[Change], ids: &[u32], now: u32) -> Visible {
    let begun = || changes.iter().zip(ids).filter(|(change, _)| change.begins < now);
    let next = begun().map(|(_, id)| u64::from(*id) + 1).max().unwrap_or(100);
    let mut running: Vec<u64> =
        begun().filter(|(change, _)| change.visible > now).map(|(_, id)| u64::from(*id)).collect();
    running.sort_unstable();
    Visible { oldest_running: running.iter().copied().min().unwrap_or(next), next, running }
}

/// The emitting of a whole history with one chunk in it: by key, the versions in the order emitted. `None`: the chunk does
/// not count, because of the base.
fn emitted(
    changes: &[Change],
    (opened, queried, marked): (u32, u32, u32),
    (begin, lag): (u32, u32),
) -> Option<BTreeMap<u8, Vec<u32>>> {
    let ids = ids(changes);
    let base = visible_at(changes, &ids, opened).next;
    let visible = visible_at(changes, &ids, queried);
    if visible.oldest_running < base {
        return None;
    }
    let mut stream: Vec<(&Change, u32)> = changes.iter().zip(ids.iter().copied()).collect();
    stream.sort_by_key(|(change, id)| (change.logged, *id));
    let mut emission: BTreeMap<u8, Vec<u32>> = BTreeMap::new();
    let mut window = Window::default();
    let mut is_marked = false;
    let take_chunk = |window: &mut Window, emission: &mut BTreeMap<u8, Vec<u32>>| {
        window.forget(&visible);
        let mut rows: BTreeMap<u8, u32> = BTreeMap::new();
        for change in changes.iter().filter(|change| change.visible <= queried) {
            let version = rows.entry(change.key).or_insert(0);
            *version = (*version).max(change.version);
        }
        for (key, version) in rows.into_iter().filter(|(key, _)| !window.has(&[*key])) {
            emission.entry(key).or_default().push(version);
        }
    };
    for (change, id) in stream {
        if !is_marked && change.logged >= marked {
            is_marked = true;
            take_chunk(&mut window, &mut emission);
        }
        // The stream may be behind: then the window opens earlier in it than the base was taken.
        if change.logged + lag >= opened && !window.is_open() {
            window.open();
        }
        // Before its slot began the stream emitted nothing.
        if change.logged >= begin {
            emission.entry(change.key).or_default().push(change.version);
            window.changed(&[change.key], id);
        }
    }
    if !is_marked {
        take_chunk(&mut window, &mut emission);
    }
    Some(emission)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_chunk_neither_takes_a_row_back_nor_leaves_one_out(
        changes in history(),
        begin in 0..30u32,
        opened in 0..30u32,
        reading in 1..20u32,
        marking in 1..10u32,
        lag in 0..10u32,
    ) {
        let opened = begin.max(opened);
        let queried = opened + reading;
        if let Some(emission) = emitted(&changes, (opened, queried, queried + marking), (begin, lag)) {
            for change in &changes {
                let versions = emission.get(&change.key).cloned().unwrap_or_default();
                prop_assert!(versions.is_sorted(), "key {}: {versions:?}", change.key);
            }
            let mut last: BTreeMap<u8, u32> = BTreeMap::new();
            for change in &changes {
                last.insert(change.key, change.version);
            }
            for (key, version) in last {
                prop_assert_eq!(emission.get(&key).and_then(|emitted| emitted.last()), Some(&version), "key {}", key);
            }
        }
    }
}
