//! The whole table of resolutions.

use uuid::Uuid;

use super::*;

const STATES: [State; 8] = [
    State::Absent,
    State::Waiting { attempt: 1 },
    State::Calling { attempt: 2, exposed: true },
    State::Unknown { attempt: 2 },
    State::Succeeded,
    State::Declined,
    State::Expired,
    State::Cancelled,
];

fn terms() -> Charge {
    Charge {
        payment_id: Uuid::from_u128(1),
        user_id: Uuid::from_u128(2),
        client_number: "12".into(),
        service_id: "power".into(),
        amount: 400,
        traceparent: None,
    }
}

fn kinds() -> [Evidence; 3] {
    [
        Evidence::Succeeded { provider_reference: "ch_1".into(), amount: 400 },
        Evidence::Declined { code: "voided".into() },
        Evidence::NeverMade,
    ]
}

fn resolved(state: State, charge: Charge, evidence: &Evidence) -> Resolution {
    let provider_reference = (state == State::Succeeded).then(|| "ch_1".to_owned());
    let found = Found { state, charge, provider_reference, version: 2, is_lease_over: true };
    resolve(Some(&found), &terms(), evidence, false)
}

/// One sign per kind of evidence: i insert, m move, a already, c calling, e ended, n never called.
fn outcomes(state: State, charge: &Charge) -> String {
    let sign = |evidence: &Evidence| match resolved(state, charge.clone(), evidence) {
        Resolution::Insert(_) => 'i',
        Resolution::Move(_) => 'm',
        Resolution::Already => 'a',
        Resolution::Refused(Refusal::Calling) => 'c',
        Resolution::Refused(Refusal::Changed) => 'x',
        Resolution::Refused(Refusal::Ended) => 'e',
        Resolution::Refused(Refusal::NeverCalled) => 'n',
        Resolution::Refused(Refusal::OtherAmount) => 'o',
    };
    kinds().iter().map(sign).collect()
}

#[test]
fn the_whole_table_for_a_charge_with_the_terms_of_the_payment() {
    // The columns: succeeded, declined, never made.
    let expected = ["iii", "nnm", "ccc", "mmm", "aee", "eaa", "eea", "eea"];
    let found: Vec<String> = STATES.iter().map(|state| outcomes(*state, &terms())).collect();
    assert_eq!(found, expected);
}

#[test]
fn the_whole_table_for_a_charge_that_balance_svc_refuses() {
    let others = [
        Charge { user_id: Uuid::from_u128(3), ..terms() },
        Charge { amount: 401, ..terms() },
        Charge { service_id: "gas".into(), ..terms() },
    ];
    for other in others {
        let expected = ["iii", "nnm", "ccc", "mmm", "mmm", "mmm", "nnm", "nnm"];
        let found: Vec<String> = STATES.iter().map(|state| outcomes(*state, &other)).collect();
        assert_eq!(found, expected, "{other:?}");
    }
}

#[test]
fn a_charge_that_differs_in_its_client_number_alone_has_its_effect() {
    let other = Charge { client_number: "99".into(), ..terms() };
    assert_eq!(outcomes(State::Succeeded, &other), "aee");
    assert_eq!(outcomes(State::Unknown { attempt: 1 }, &other), "mmm");
}

#[test]
fn nothing_is_released_while_the_last_attempt_may_still_call() {
    let state = State::Unknown { attempt: 1 };
    let found = Found { state, charge: terms(), provider_reference: None, version: 2, is_lease_over: false };
    let refused = kinds().map(|evidence| {
        matches!(resolve(Some(&found), &terms(), &evidence, false), Resolution::Refused(Refusal::Calling))
    });
    assert_eq!(refused, [false, true, true]);
}

/// It may have been called since, so only what stands already counts.
#[test]
fn a_charge_that_has_changed_is_released_by_no_evidence_from_before() {
    for state in STATES {
        let found =
            Found { state, charge: terms(), provider_reference: None, version: 2, is_lease_over: true };
        for evidence in kinds() {
            let before = resolve(Some(&found), &terms(), &evidence, false);
            let after = resolve(Some(&found), &terms(), &evidence, true);
            let writes = matches!(before, Resolution::Insert(_) | Resolution::Move(_));
            if writes && !matches!(evidence, Evidence::Succeeded { .. }) {
                assert_eq!(after, Resolution::Refused(Refusal::Changed), "{state:?} {evidence:?}");
            } else {
                assert_eq!(after, before, "{state:?} {evidence:?}");
            }
        }
    }
}

#[test]
fn a_charge_of_another_amount_is_no_success_in_any_state() {
    let evidence = Evidence::Succeeded { provider_reference: "ch_1".into(), amount: 401 };
    for state in STATES {
        assert_eq!(
            resolved(state, terms(), &evidence),
            Resolution::Refused(Refusal::OtherAmount),
            "{state:?}"
        );
    }
    assert_eq!(resolve(None, &terms(), &evidence, false), Resolution::Refused(Refusal::OtherAmount));
}

/// A constraint of the table says the same: what was exposed is not released as never called.
#[test]
fn what_may_have_been_called_is_never_said_to_be_uncalled() {
    for state in [State::Unknown { attempt: 1 }, State::Succeeded, State::Declined] {
        let other = Charge { amount: 401, ..terms() };
        let to = To::Declined { code: NEVER_MADE.to_owned() };
        assert_eq!(resolved(state, other, &Evidence::NeverMade), Resolution::Move(to), "{state:?}");
    }
}

#[test]
fn another_reference_is_other_evidence() {
    let evidence = Evidence::Succeeded { provider_reference: "ch_2".into(), amount: 400 };
    assert_eq!(resolved(State::Succeeded, terms(), &evidence), Resolution::Refused(Refusal::Ended));
}

#[test]
fn another_operator_confirms_in_time_and_once() {
    let proposal = |has_lapsed, by: Option<&str>| Proposal {
        operator: "alice".into(),
        has_lapsed,
        confirmed_by: by.map(str::to_owned),
    };
    assert_eq!(may_confirm(&proposal(false, None), "bob"), MayConfirm::Yes);
    assert_eq!(may_confirm(&proposal(false, Some("bob")), "bob"), MayConfirm::Repeated);
    assert_eq!(may_confirm(&proposal(true, Some("bob")), "bob"), MayConfirm::Repeated);
    for (proposal, operator) in [
        (proposal(false, None), "alice"),
        (proposal(true, None), "bob"),
        (proposal(false, Some("bob")), "carol"),
        (proposal(false, Some("bob")), "alice"),
    ] {
        assert!(matches!(may_confirm(&proposal, operator), MayConfirm::No(_)), "{proposal:?} {operator}");
    }
}
