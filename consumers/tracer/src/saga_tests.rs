use super::*;

/// A moment, in milliseconds.
fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

fn fact(event: EventType, began: i64, committed: i64) -> Fact {
    let called_at = (service(event) == PROCESSOR).then(|| at(began - 5));
    let id = format!("{}/{committed}", event.as_str());
    Fact { event, id, began_at: at(began), called_at, committed_at: at(committed), reason: None }
}

fn completed() -> Vec<Fact> {
    use EventType::{
        BalanceCaptured, BalanceHeld, PaymentAuthorized, PaymentCompleted, PaymentInitiated, ResultSucceeded,
    };
    vec![
        fact(PaymentInitiated, 0, 10),
        fact(BalanceHeld, 20, 30),
        fact(PaymentAuthorized, 40, 50),
        fact(ResultSucceeded, 70, 80),
        fact(BalanceCaptured, 90, 100),
        fact(PaymentCompleted, 110, 120),
    ]
}

const CONTEXT: Context = Context { trace: 7, parent: 9 };

#[test]
fn a_completed_payment_is_one_chain_without_gaps_from_the_request_to_its_end() {
    let mut facts = completed();
    facts.reverse();
    let all = spans(Uuid::max(), CONTEXT, &facts);
    let (root, others) = all.split_first().unwrap();
    assert_eq!((root.start, root.end, root.parent), (at(0), at(120), 9));
    assert!(root.attributes.contains(&("payment.event", "payment.completed.v1".to_owned())));
    assert!(others.iter().all(|span| span.parent == root.id && span.id != root.id));
    let mut ids: Vec<u64> = all.iter().map(|span| span.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all.len());
    let mut chain: Vec<_> =
        others.iter().map(|span| (span.start, span.end, span.service, span.name.as_str())).collect();
    chain.sort_unstable();
    let expected = [
        (0, 10, PAYMENTS, "payment.initiated.v1"),
        (10, 20, RELAY, "payment.initiated.v1 to balance-svc"),
        (20, 30, BALANCE, "balance.held.v1"),
        (30, 40, RELAY, "balance.held.v1 to payments-svc"),
        (40, 50, PAYMENTS, "payment.authorized.v1"),
        (50, 65, RELAY, "payment.authorized.v1 to processor-svc"),
        (65, 70, PROCESSOR, "charge at the gateway"),
        (70, 80, PROCESSOR, "payment.result.succeeded.v1"),
        (80, 90, RELAY, "payment.result.succeeded.v1 to balance-svc"),
        (90, 100, BALANCE, "balance.captured.v1"),
        (100, 110, RELAY, "balance.captured.v1 to payments-svc"),
        (110, 120, PAYMENTS, "payment.completed.v1"),
    ];
    assert_eq!(chain, expected.map(|(start, end, service, name)| (at(start), at(end), service, name)));
    let way = others.iter().find(|span| span.name.ends_with("to processor-svc")).unwrap();
    assert!(way.attributes.contains(&("messaging.system", "rabbitmq".to_owned())), "{way:?}");
}

#[test]
fn an_unknown_outcome_is_one_call_that_lasts_until_it_is_known() {
    use EventType::{PaymentAuthorized, PaymentInitiated, ResultDeclined, ResultUnknown};
    let mut declined = fact(ResultDeclined, 500, 510);
    declined.called_at = Some(at(65));
    let facts = [
        fact(PaymentInitiated, 0, 10),
        fact(PaymentAuthorized, 40, 50),
        fact(ResultUnknown, 70, 80),
        declined,
    ];
    let all = spans(Uuid::max(), CONTEXT, &facts);
    let named = |name: &str| all.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    let [call] = named("charge at the gateway")[..] else { panic!("{all:#?}") };
    assert_eq!((call.start, call.end), (at(65), at(500)));
    assert_eq!(named("payment.authorized.v1 to processor-svc").len(), 1, "inquiries are no message");
}

#[test]
fn what_was_never_called_has_no_call() {
    use EventType::{
        PaymentAuthorized, PaymentCancelRequested, PaymentInitiated, ResultCancelled, ResultExpired,
    };
    for (result, carried) in [(ResultCancelled, "kafka"), (ResultExpired, "rabbitmq")] {
        let facts = [
            fact(PaymentInitiated, 0, 10),
            fact(PaymentAuthorized, 40, 50),
            fact(PaymentCancelRequested, 55, 60),
            fact(result, 70, 80),
        ];
        let all = spans(Uuid::max(), CONTEXT, &facts);
        assert!(all.iter().all(|span| span.name != "charge at the gateway"), "{result:?}");
        let way = all.iter().find(|span| span.name.ends_with("to processor-svc")).unwrap();
        assert!(way.attributes.contains(&("messaging.system", carried.to_owned())), "{way:?}");
    }
}

#[test]
fn clocks_that_differ_make_no_span_of_less_than_nothing() {
    use EventType::{BalanceHeld, PaymentInitiated};
    let all = spans(Uuid::max(), CONTEXT, &[fact(PaymentInitiated, 0, 100), fact(BalanceHeld, 20, 30)]);
    assert!(all.iter().all(|span| span.end >= span.start), "{all:#?}");
    assert!(spans(Uuid::max(), CONTEXT, &[]).is_empty());
}

#[test]
fn events_are_whole_when_none_lacks_its_cause() {
    let all = completed();
    assert!(is_whole(&all));
    for (index, fact) in all.iter().enumerate() {
        let mut rest = all.clone();
        rest.remove(index);
        assert_eq!(is_whole(&rest), fact.event.ends_payment(), "without {}", fact.id);
    }
    for event in EventType::ALL {
        // A cause is an event of another service, so each way crosses the relay.
        assert!(causes(*event).iter().all(|cause| service(*cause) != service(*event)), "{event:?}");
    }
}

#[test]
fn a_context_is_read_where_it_is_sampled() {
    let text = |flags: &str| format!("00-{}7-00000000000000a9-{flags}", "0".repeat(31));
    assert_eq!(Context::sampled(&text("01")), Some(Context { trace: 7, parent: 0xa9 }));
    assert_eq!(Context::sampled(&text("03")).map(|context| context.trace), Some(7));
    for bad in [text("00"), text("02"), String::new(), text("zz")] {
        assert_eq!(Context::sampled(&bad), None, "{bad}");
    }
}

#[test]
fn a_share_of_the_traces_is_taken_by_their_ids() {
    let context = |trace| Context { trace, parent: 1 };
    let (low, high) = (context(0xff << 56), context((1 << 56) - 1));
    let sampler = |text: &str| text.parse::<Sampler>().unwrap();
    assert_eq!([low, high].map(|trace| sampler("0").takes(trace)), [false, false]);
    assert_eq!([low, high].map(|trace| sampler("0.5").takes(trace)), [true, false]);
    assert_eq!([low, high].map(|trace| sampler("1").takes(trace)), [true, true]);
    for bad in ["", "-0.1", "1.1", "NaN", "x"] {
        assert!(bad.parse::<Sampler>().is_err(), "{bad}");
    }
}
