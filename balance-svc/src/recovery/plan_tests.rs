//! The whole table of what may follow, and random ledgers that are cut anywhere.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;

const USER: Uuid = Uuid::from_u128(1);
const PAYMENT: Uuid = Uuid::from_u128(2);

fn entry(kind: &str, amount: i64) -> LedgerEntry {
    let phase = if matches!(kind, "capture" | "release") { 2 } else { 1 };
    let reason = matches!(kind, "rejection" | "release").then(|| "declined:x".to_owned());
    LedgerEntry {
        user_id: USER,
        payment_id: PAYMENT,
        phase,
        kind: kind.to_owned(),
        amount,
        service_id: (kind != "deposit").then(|| "electricity".to_owned()),
        reason,
        traceparent: None,
        created_at: Timestamp::UNIX_EPOCH,
    }
}

fn emitted(entry: &LedgerEntry) -> Emitted<LedgerEntry> {
    let place = format!("t/0/{}", entry.phase);
    Emitted { body: entry.clone(), place, is_first_emission: true }
}

fn account(available: i64, held: i64, last_entry_no: i64) -> Account {
    Account { available, held, last_entry_no }
}

fn present(account: Option<Account>, entries: &[LedgerEntry]) -> Present {
    Present {
        accounts: account.map(|account| (USER, account)).into_iter().collect(),
        entries: entries.iter().map(|entry| (EntryKey::of(entry), entry.clone())).collect(),
    }
}

/// The account after one entry, or why there is none.
fn one(of: &LedgerEntry, present: Present) -> Result<Option<Account>, Contradiction> {
    let batch = [emitted(of)];
    let plan = plan(&batch, present, &mut HashSet::new());
    match (plan.lacking.first(), plan.refused.first()) {
        (Some(lacking), None) => Ok(lacking.after),
        (None, Some(refused)) => Err(refused.why),
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_kind_moves_what_it_moved_at_first() {
    let before = Some(account(100, 50, 7));
    let hold = [entry("hold", 50)];
    for (kind, entries, expected) in [
        ("deposit", &[][..], Ok(Some(account(150, 50, 8)))),
        ("hold", &[], Ok(Some(account(50, 100, 8)))),
        ("rejection", &[], Ok(None)),
        ("capture", &hold, Ok(Some(account(100, 0, 8)))),
        ("release", &hold, Ok(Some(account(150, 0, 8)))),
        ("capture", &[], Err(Contradiction::NoHold)),
        ("release", &[], Err(Contradiction::NoHold)),
        ("capture", &[entry("rejection", 50)], Err(Contradiction::NoHold)),
        ("capture", &[entry("hold", 51)], Err(Contradiction::OtherTerms)),
        ("gift", &[], Err(Contradiction::UnknownKind)),
    ] {
        assert_eq!(one(&entry(kind, 50), present(before, entries)), expected, "{kind} on {entries:?}");
    }
    let other = LedgerEntry { service_id: Some("gas".into()), ..entry("capture", 50) };
    assert_eq!(one(&other, present(before, &hold)), Err(Contradiction::OtherTerms));
}

#[test]
fn what_an_account_cannot_follow_is_refused() {
    for (kind, amount, before, expected) in [
        ("deposit", 5, None, Ok(Some(account(5, 0, 1)))),
        ("hold", 5, None, Err(Contradiction::NoAccount)),
        ("rejection", 5, None, Ok(None)),
        ("hold", 101, Some(account(100, 0, 1)), Err(Contradiction::Overdrawn)),
        ("hold", 100, Some(account(100, 0, 1)), Ok(Some(account(0, 100, 2)))),
        ("deposit", 1, Some(account(BALANCE_MAX - 1, 1, 1)), Err(Contradiction::TooMuch)),
        ("deposit", 1, Some(account(BALANCE_MAX - 2, 1, 1)), Ok(Some(account(BALANCE_MAX - 1, 1, 2)))),
    ] {
        assert_eq!(one(&entry(kind, amount), present(before, &[])), expected, "{kind} on {before:?}");
    }
    let hold = [entry("hold", 50)];
    let less_held = present(Some(account(0, 49, 1)), &hold);
    assert_eq!(
        one(&entry("capture", 50), less_held),
        Err(Contradiction::NoHold),
        "the account is not the fold"
    );
}

#[test]
fn an_entry_that_is_there_is_left_alone_and_one_that_differs_in_any_column_is_refused() {
    let hold = entry("hold", 50);
    let others = [
        LedgerEntry { amount: 51, ..hold.clone() },
        LedgerEntry { kind: "deposit".into(), ..hold.clone() },
        LedgerEntry { service_id: None, ..hold.clone() },
        LedgerEntry { reason: Some("x".into()), ..hold.clone() },
        LedgerEntry { traceparent: Some("00-1".into()), ..hold.clone() },
        LedgerEntry { created_at: Timestamp::from_microsecond(1).unwrap(), ..hold.clone() },
    ];
    let before = present(Some(account(50, 50, 2)), std::slice::from_ref(&hold));
    let batch = [emitted(&hold)];
    let same = plan(&batch, before.clone(), &mut HashSet::new());
    assert_eq!(same, Plan { is_present: vec![true], ..Plan::default() });
    for other in others {
        assert_eq!(one(&other, before.clone()), Err(Contradiction::Differs), "{other:?}");
    }
}

#[test]
fn a_refused_entry_stops_its_user_and_nobody_else() {
    let of = |user: u128, payment: u128, kind: &str| {
        let (user_id, payment_id) = (Uuid::from_u128(user), Uuid::from_u128(payment));
        emitted(&LedgerEntry { user_id, payment_id, ..entry(kind, 10) })
    };
    let batch = [of(8, 1, "deposit"), of(8, 2, "capture"), of(8, 3, "deposit"), of(9, 1, "deposit")];
    let mut stopped = HashSet::new();
    let first = plan(&batch, Present::default(), &mut stopped);
    let written =
        |plan: &Plan<'_>| plan.lacking.iter().map(|l| l.entry.user_id.as_u128()).collect::<Vec<_>>();
    assert_eq!((written(&first), first.refused.len()), (vec![8, 9], 1));
    assert_eq!(first.new_accounts, [8, 9].map(Uuid::from_u128));
    // In the next batch too.
    let batch = [of(8, 4, "deposit"), of(9, 2, "deposit")];
    let accounts = [8, 9].map(|user| (Uuid::from_u128(user), account(10, 0, 1))).into();
    let next = plan(&batch, Present { accounts, ..Present::default() }, &mut stopped);
    assert_eq!((written(&next), next.refused.len(), next.new_accounts.len()), (vec![9], 0, 0));
}

/// A ledger as balance-svc would write it, from random wishes: entries in their order, each with the account after it.
fn ledger(wishes: &[(u8, u8, u8, i64)]) -> Vec<(LedgerEntry, Option<Account>)> {
    let mut all = Present::default();
    let mut written = Vec::new();
    for (nth, (user, payment, kind, amount)) in wishes.iter().enumerate() {
        let kind = ["deposit", "hold", "rejection", "capture", "release"][usize::from(kind % 5)];
        let user_id = Uuid::from_u128(u128::from(user % 3));
        // Deposits have ids of their own.
        let payment_id = match kind {
            "deposit" => Uuid::from_u128(1_000 + nth as u128),
            _ => Uuid::from_u128(100 + u128::from(payment % 8)),
        };
        let created_at = Timestamp::from_microsecond(nth as i64).unwrap();
        let mut entry = LedgerEntry { user_id, payment_id, created_at, ..entry(kind, *amount) };
        if entry.phase == 2 {
            let first = all.entries.get(&EntryKey::of(&entry).first());
            entry.amount = first.map_or(*amount, |first| first.amount);
        }
        if all.entries.contains_key(&EntryKey::of(&entry)) {
            continue;
        }
        // What the service would not write is left out.
        let batch = [emitted(&entry)];
        let plan = plan(&batch, all.clone(), &mut HashSet::new());
        let Some(Lacking { after, .. }) = plan.lacking.first().cloned() else { continue };
        all.accounts.extend(after.map(|after| (user_id, after)));
        all.entries.insert(EntryKey::of(&entry), entry.clone());
        written.push((entry, after));
    }
    written
}

fn state(ledger: &[(LedgerEntry, Option<Account>)]) -> Present {
    let mut state = Present::default();
    for (entry, after) in ledger {
        state.accounts.extend(after.map(|after| (entry.user_id, after)));
        state.entries.insert(EntryKey::of(entry), entry.clone());
    }
    state
}

proptest! {
    /// Whatever the backup has, however the topic is read: the ledger and the movements are those that were lost.
    #[test]
    fn recovering_any_cut_of_a_ledger_makes_the_same_rows(
        wishes in prop::collection::vec((any::<u8>(), any::<u8>(), any::<u8>(), 1_i64..50), 1..80),
        cut in any::<prop::sample::Index>(),
        since in any::<prop::sample::Index>(),
        repeated in any::<prop::sample::Index>(),
        batch_size in 1_usize..20,
    ) {
        let whole = ledger(&wishes);
        prop_assume!(!whole.is_empty());
        let cut = cut.index(whole.len() + 1);
        let since = since.index(cut + 1);
        // Read from within the backup; some events come twice.
        let mut topic: Vec<Emitted<LedgerEntry>> = whole[since..].iter().map(|(entry, _)| emitted(entry)).collect();
        let again: Vec<Emitted<LedgerEntry>> = topic.iter().take(repeated.index(topic.len() + 1)).cloned().collect();
        topic.extend(again);
        let (mut now, mut stopped, mut made) = (state(&whole[..cut]), HashSet::new(), Vec::new());
        for batch in topic.chunks(batch_size) {
            let plan = plan(batch, now.clone(), &mut stopped);
            prop_assert!(plan.refused.is_empty(), "{:?}", plan.refused);
            for Lacking { entry, after } in plan.lacking {
                now.accounts.extend(after.map(|after| (entry.user_id, after)));
                now.entries.insert(EntryKey::of(entry), entry.clone());
                made.push((entry.clone(), after));
            }
        }
        prop_assert_eq!(&made[..], &whole[cut..], "each movement with its number and balances");
        prop_assert_eq!(now, state(&whole));
    }
}
