//! Once per key, and still so after a restart.

use uuid::Uuid;

use super::*;

fn request(reference: &str, amount: i64) -> Request {
    let (client_number, service_id) = ("5551234".to_owned(), "power".to_owned());
    Request { reference: reference.to_owned(), amount, client_number, service_id }
}

fn charge(ledger: &Arc<Ledger>, key: &str, request: &Request) -> Decision {
    let Begin::Fresh(reservation) = ledger.begin(key, request) else { panic!("{key} is not fresh") };
    ledger.record(&reservation, request, Verdict::Approved, Duration::ZERO).expect("recorded")
}

fn path() -> std::path::PathBuf {
    std::env::temp_dir().join(format!("gateway-sim-{}.ndjson", Uuid::new_v4()))
}

#[test]
fn a_key_is_decided_once_and_belongs_to_one_request() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    let first = request("r1", 5);
    let Begin::Fresh(reservation) = ledger.begin("k1", &first) else { panic!("not fresh") };
    assert!(matches!(ledger.begin("k1", &first), Begin::InProgress));
    let decision = ledger.record(&reservation, &first, Verdict::Approved, Duration::ZERO).unwrap();
    drop(reservation);
    assert!(matches!(ledger.begin("k1", &first), Begin::Known(known) if known == decision));
    assert!(matches!(ledger.begin("k1", &request("r1", 6)), Begin::Reused));
    assert_eq!(ledger.counts(), Counts { charges: 1, ..Counts::default() });
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_dropped_claim_leaves_the_key_free() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    drop(ledger.begin("k1", &request("r1", 5)));
    charge(&ledger, "k1", &request("r1", 5));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn another_key_charges_the_same_reference_again_and_that_is_counted() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    charge(&ledger, "k1", &request("r1", 5));
    charge(&ledger, "k2", &request("r1", 5));
    assert_eq!(ledger.counts(), Counts { charges: 2, surplus: 1, ..Counts::default() });
    let Lookup::Decision { decision, surplus } = ledger.find("r1") else { panic!("a charge") };
    assert_eq!((decision.key, surplus.len()), (Id::new("k1"), 1));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn everything_is_there_after_a_restart_and_a_torn_line_is_not() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    let uuid = "0198c0de-0000-7000-8000-000000000001";
    let approved = charge(&ledger, uuid, &request(uuid, 15_000));
    let odd = request("odd \"reference\"\n", 1);
    let Begin::Fresh(reservation) = ledger.begin("k2", &odd) else { panic!("not fresh") };
    let verdict = Verdict::Declined { code: "no_funds".into(), status: 402 };
    let declined = ledger.record(&reservation, &odd, verdict, Duration::from_secs(3600)).unwrap();
    let (counts, exported) = (ledger.counts(), ledger.export(0, 100));
    drop((reservation, ledger));

    let whole = std::fs::read(&path).unwrap();
    for torn in [&b"{"[..], b"{\"reference\":\"r3\",\"amount\":1}", b"\xff"] {
        std::fs::write(&path, [&whole, torn].concat()).unwrap();
        let ledger = Ledger::open(&path, 7).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!((ledger.counts(), ledger.export(0, 100)), (counts, exported.clone()));
        assert!(matches!(ledger.begin(uuid, &request(uuid, 15_000)), Begin::Known(d) if d == approved));
        assert!(matches!(ledger.begin("k2", &odd), Begin::Known(d) if d == declined));
        assert_eq!(ledger.find("odd \"reference\"\n"), Lookup::Nothing, "not visible yet");
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_damaged_line_and_a_second_process_are_refused() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    assert!(Ledger::open(&path, 7).is_err(), "in use");
    drop(ledger);
    std::fs::write(&path, "{}\n").unwrap();
    let error = format!("{:#}", Ledger::open(&path, 7).err().expect("damaged"));
    assert!(error.contains("line 1"), "{error}");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn the_export_comes_in_pages_without_declines() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    for n in 0..5 {
        let request = request(&format!("r{n}"), n + 1);
        let Begin::Fresh(reservation) = ledger.begin(&request.reference, &request) else { panic!() };
        let declined = Verdict::Declined { code: "no".into(), status: 402 };
        let verdict = if n == 1 { declined } else { Verdict::Approved };
        ledger.record(&reservation, &request, verdict, Duration::ZERO).unwrap();
    }
    let (mut text, mut from) = (String::new(), 0);
    while let Some((page, next)) = ledger.export(from, 2) {
        text.push_str(&page);
        from = next;
    }
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let seen: Vec<_> =
        lines.iter().map(|l| (l["reference"].as_str().unwrap(), l["amount"].as_i64())).collect();
    assert_eq!(seen, [("r0", Some(1)), ("r2", Some(3)), ("r3", Some(4)), ("r4", Some(5))]);
    assert!(lines.iter().all(|l| l["kind"] == "charge" && l["at"].as_str().unwrap().len() == 27));
    std::fs::remove_file(path).unwrap();
}

fn voided(ledger: &Ledger, reference: &str, keep: Option<&str>) -> (usize, bool) {
    match ledger.void(reference, keep, Some(9)).unwrap() {
        VoidOutcome::Done { voided, barred, .. } => (voided.len(), barred),
        VoidOutcome::UnknownKeep => panic!("the charge to keep stands"),
    }
}

#[test]
fn surplus_is_given_back_once_and_the_kept_charge_stands() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    let keys = ["k1", "k2", "k3"].map(|key| charge(&ledger, key, &request("r1", 5)));
    let keep = ledger.provider_reference(&keys[1]);
    assert_eq!(ledger.void("r1", Some("ch_unknown"), None).unwrap(), VoidOutcome::UnknownKeep);
    for _ in 0..2 {
        assert_eq!(voided(&ledger, "r1", Some(&keep)), (2, false));
    }
    let counts = Counts { charges: 3, voids: 2, ..Counts::default() };
    drop(ledger);
    let ledger = Ledger::open(&path, 7).unwrap();
    assert_eq!(ledger.counts(), counts, "after a restart too");
    let kept = Lookup::Decision { decision: keys[1].clone(), surplus: Vec::new() };
    assert_eq!(ledger.find("r1"), kept);
    let (text, _) = ledger.export(0, 100).unwrap();
    let kinds: Vec<_> = text.lines().map(|line| line.contains("\"kind\":\"void\"")).collect();
    assert_eq!(kinds, [false, false, false, true, true]);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_bar_without_an_amount_takes_the_first_that_is_given() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    let amount = |given| match ledger.void("r1", None, given).unwrap() {
        VoidOutcome::Done { amount, .. } => amount,
        VoidOutcome::UnknownKeep => panic!("nothing is kept"),
    };
    let amounts = [amount(None), amount(Some(5)), amount(Some(6)), amount(None)];
    assert_eq!(amounts, [None, Some(5), Some(5), Some(5)]);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_barred_reference_is_never_charged_again() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    assert_eq!(voided(&ledger, "r1", None), (0, true));
    let late = charge(&ledger, "k1", &request("r1", 5));
    assert_eq!(late.verdict, Verdict::Declined { code: "reference_voided".into(), status: 402 });
    assert_eq!(ledger.find("r1"), Lookup::Voided { amount: Some(9) }, "as the void said");
    charge(&ledger, "k2", &request("r2", 5));
    assert_eq!(voided(&ledger, "r2", None), (1, true));
    drop(ledger);
    let ledger = Ledger::open(&path, 7).unwrap();
    assert_eq!(
        (ledger.find("r1"), ledger.find("r2")),
        (Lookup::Voided { amount: Some(9) }, Lookup::Voided { amount: Some(5) })
    );
    assert_eq!(ledger.counts(), Counts { charges: 1, declines: 1, voids: 1, surplus: 0 });
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_gateway_that_does_not_look_at_keys_charges_each_time() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    let request = request("r1", 5);
    for _ in 0..3 {
        let reservation = ledger.begin_anew("k1");
        ledger.record(&reservation, &request, Verdict::Approved, Duration::ZERO).unwrap();
    }
    assert_eq!(ledger.counts(), Counts { charges: 3, surplus: 2, ..Counts::default() });
    std::fs::remove_file(path).unwrap();
}

#[test]
fn pending_lasts_until_the_decision() {
    let path = path();
    let ledger = Ledger::open(&path, 7).unwrap();
    ledger.pend("r1", 5);
    assert_eq!(ledger.find("r1"), Lookup::Pending { amount: 5 });
    charge(&ledger, "k1", &request("r1", 5));
    assert!(matches!(ledger.find("r1"), Lookup::Decision { .. }));
    std::fs::remove_file(path).unwrap();
}
