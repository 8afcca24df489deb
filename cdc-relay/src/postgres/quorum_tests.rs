use proptest::prelude::*;

use super::*;

fn parsed(names: &str) -> Option<(Method, usize)> {
    Quorum::parse(names).map(|Quorum { method, count }| (method, count))
}

/// The forms of the manual (`synchronous_standby_names`), with the spaces that the server's scanner allows.
#[test]
fn the_setting_says_how_many_standbys_a_commit_waits_for() {
    use Method::{Any, First};
    for (names, expected) in [
        ("", None),
        ("  ", None),
        ("n2", Some((First, 1))),
        ("n2, n3", Some((First, 1))),
        ("*", Some((First, 1))),
        ("2 (n2, n3)", Some((First, 2))),
        ("2(n2,n3)", Some((First, 2))),
        ("FIRST 2 (n2, n3, n4)", Some((First, 2))),
        ("first  2(n2, n3)", Some((First, 2))),
        ("ANY 1 (n2, n3)", Some((Any, 1))),
        ("any 2\t(*)", Some((Any, 2))),
        ("Any\n3 (a, b, c)", Some((Any, 3))),
        // Names that look like the words, and a standby whose name is a number.
        ("\"any\"", Some((First, 1))),
        ("anyone, n3", Some((First, 1))),
        ("first1, n3", Some((First, 1))),
        ("2", Some((First, 1))),
        ("2, 3", Some((First, 1))),
        ("\"ANY 2 (x)\"", Some((First, 1))),
    ] {
        assert_eq!(parsed(names), expected, "{names:?}");
    }
}

const fn standby(flushed: u64) -> Standby {
    Standby { is_synchronous: true, flushed: Some(Lsn(flushed)) }
}

const fn other(flushed: u64) -> Standby {
    Standby { is_synchronous: false, flushed: Some(Lsn(flushed)) }
}

/// Prevents an event whose transaction a promotion undoes.
#[test]
fn a_position_counts_once_enough_synchronous_standbys_have_flushed_it() {
    use Standing::{Flushed, NotConfigured, TooFew};
    let silent = Standby { is_synchronous: true, flushed: None };
    for (names, standbys, expected) in [
        ("", vec![standby(9)], NotConfigured),
        ("n2", vec![standby(5)], Flushed(Lsn(5))),
        ("n2", vec![], TooFew { needed: 1, connected: 0 }),
        // One that is ahead and not synchronous does not count.
        ("n2", vec![other(9)], TooFew { needed: 1, connected: 0 }),
        ("n2", vec![standby(5), other(9)], Flushed(Lsn(5))),
        ("n2", vec![silent, other(9)], TooFew { needed: 1, connected: 0 }),
        // All that the server has chosen.
        ("FIRST 2 (n2, n3)", vec![standby(5), standby(7)], Flushed(Lsn(5))),
        ("FIRST 2 (n2, n3)", vec![standby(7), standby(5), other(9)], Flushed(Lsn(5))),
        ("FIRST 2 (n2, n3)", vec![standby(7)], TooFew { needed: 2, connected: 1 }),
        ("FIRST 2 (n2, n3)", vec![standby(7), silent], TooFew { needed: 2, connected: 1 }),
        // Any of those that are named.
        ("ANY 1 (n2, n3)", vec![standby(5), standby(7)], Flushed(Lsn(7))),
        ("ANY 2 (n2, n3)", vec![standby(5), standby(7)], Flushed(Lsn(5))),
        ("ANY 2 (n2, n3, n4)", vec![standby(3), standby(7), standby(5)], Flushed(Lsn(5))),
        ("ANY 2 (n2, n3, n4)", vec![standby(7), silent, silent], TooFew { needed: 2, connected: 1 }),
        ("ANY 3 (n2, n3)", vec![standby(7), standby(5)], TooFew { needed: 3, connected: 2 }),
    ] {
        assert_eq!(standing(Quorum::parse(names), &standbys), expected, "{names} {standbys:?}");
    }
}

fn standbys() -> impl Strategy<Value = Vec<Standby>> {
    let standby = (any::<bool>(), proptest::option::of(0_u64..20))
        .prop_map(|(is_synchronous, flushed)| Standby { is_synchronous, flushed: flushed.map(Lsn) });
    proptest::collection::vec(standby, 0..6)
}

/// How many synchronous standbys have flushed the position.
fn have(standbys: &[Standby], position: Lsn) -> usize {
    let has = |standby: &&Standby| standby.is_synchronous && standby.flushed.is_some_and(|at| at >= position);
    standbys.iter().filter(has).count()
}

proptest! {
    /// The definition of both methods, counted instead of sorted.
    #[test]
    fn the_position_is_the_greatest_that_enough_have_flushed(
        standbys in standbys(), count in 1_usize..4, any in any::<bool>(),
    ) {
        let method = if any { Method::Any } else { Method::First };
        let reporting = have(&standbys, Lsn(0));
        let enough = match method {
            Method::Any => count,
            // The server marks no more than it chose.
            Method::First => reporting,
        };
        match standing(Some(Quorum { method, count }), &standbys) {
            Standing::Flushed(position) => {
                prop_assert!(reporting >= count);
                prop_assert!(have(&standbys, position) >= enough);
                prop_assert!(have(&standbys, Lsn(position.0 + 1)) < enough);
            }
            Standing::TooFew { needed, connected } => {
                prop_assert_eq!((needed, connected), (count, reporting));
                prop_assert!(reporting < count);
            }
            Standing::NotConfigured => prop_assert!(false, "a quorum was given"),
        }
    }

    /// A standby that joins or advances never takes a position back under `ANY`; one that is not synchronous never counts.
    #[test]
    fn more_standbys_take_nothing_back(standbys in standbys(), count in 1_usize..4, joins in 0_u64..20) {
        let quorum = Some(Quorum { method: Method::Any, count });
        let position = |standbys: &[Standby]| match standing(quorum, standbys) {
            Standing::Flushed(position) => position.0 + 1,
            _ => 0,
        };
        let mut more = standbys.clone();
        more.push(standby(joins));
        prop_assert!(position(&more) >= position(&standbys));
        let mut others = standbys.clone();
        others.push(other(joins));
        prop_assert_eq!(position(&others), position(&standbys));
    }
}
