//! No row of ours says anything of a charge that the gateway contradicts.

use crate::audit::finding::Tally;
use crate::audit::observed::Observed;
use crate::audit::statuses::{ChargeStatus, PaymentStatus};

/// G1: exactly one standing charge of exactly the amount.
pub fn completed(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &observed.payments.rows {
        match payment.status {
            PaymentStatus::Completed => {
                let net = observed.gateway.net_of(*id);
                let what = || format!("completed over {}, {}", payment.amount, net.describe());
                tally.check(net.is_charged_once(payment.amount), *id, what);
            }
            PaymentStatus::Initiated
            | PaymentStatus::Authorized
            | PaymentStatus::Rejected
            | PaymentStatus::Failed
            | PaymentStatus::Cancelled => {}
        }
    }
    tally
}

/// G2: nothing is left charged.
pub fn unpaid(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &observed.payments.rows {
        match payment.status {
            PaymentStatus::Rejected | PaymentStatus::Failed | PaymentStatus::Cancelled => {
                let net = observed.gateway.net_of(*id);
                tally.check(net.is_nothing(), *id, || {
                    format!("{}, {}", payment.status.as_str(), net.describe())
                });
            }
            PaymentStatus::Initiated | PaymentStatus::Authorized | PaymentStatus::Completed => {}
        }
    }
    tally
}

/// G3: each charge has a committed intent of its amount, and its row does not say that no call was made. An amount that
/// operators have replaced was that of the intent.
pub fn intended(observed: &Observed) -> Tally {
    let mut tally = Tally { examined: observed.gateway.lines, ..Tally::default() };
    for id in observed.charges_without_intent() {
        tally.violate(id, || {
            let net = observed.gateway.net_of(id).describe();
            match observed.charges.rows.get(&id) {
                Some(row) => format!("{net}, though its charge is {}", row.status.as_str()),
                None => format!("{net} without a row in charges"),
            }
        });
    }
    for (id, net) in &observed.gateway.net {
        let intent = observed.charges.rows.get(id).filter(|row| !row.status.was_never_called());
        let amounts = |amount| observed.charges.amounts(*id, amount);
        if let Some(row) = intent.filter(|row| !net.has_amounts(&amounts(row.amount))) {
            tally.violate(*id, || format!("{}, though its charge is of {}", net.describe(), row.amount));
        }
    }
    for reference in &observed.gateway.foreign {
        tally.violate(None, || format!("a charge with the reference {reference:?}, which is no payment's"));
    }
    tally
}

/// G4: a payment ends unpaid only on a definite answer; as long as there is none, nothing ends.
pub fn definite(observed: &Observed) -> Tally {
    has_answer(observed).and(&has_hold(observed))
}

/// A failed or cancelled payment has a charge row with the reason.
fn has_answer(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &observed.payments.rows {
        let charge = observed.charges.rows.get(id);
        let answer = charge.filter(|charge| charge.has_reason).map(|charge| charge.status);
        let definite = match payment.status {
            PaymentStatus::Failed => matches!(answer, Some(ChargeStatus::Declined | ChargeStatus::Expired)),
            PaymentStatus::Cancelled => answer == Some(ChargeStatus::Cancelled),
            PaymentStatus::Initiated
            | PaymentStatus::Authorized
            | PaymentStatus::Completed
            | PaymentStatus::Rejected => continue,
        };
        tally.check(definite, *id, || {
            let found = charge.map_or("missing", |charge| charge.status.as_str());
            let reason = if answer.is_none() { " without a reason" } else { "" };
            format!("{}, its charge is {found}{reason}", payment.status.as_str())
        });
    }
    tally
}

/// A payment whose charge is undecided has neither ended nor lost its hold.
fn has_hold(observed: &Observed) -> Tally {
    let mut tally = Tally::default();
    for (id, charge) in observed.charges.rows.iter().filter(|(_, charge)| !charge.status.is_definite()) {
        let second = observed.ledger.rows.get(id).and_then(|entries| entries.second);
        let ended = observed.payments.rows.get(id).map(|payment| payment.status).filter(|s| s.has_ended());
        tally.check(second.is_none() && ended.is_none(), *id, || {
            let hold = second.map(|entry| format!("its hold ended in a {}", entry.kind.as_str()));
            let end = ended.map(|status| format!("it is {}", status.as_str()));
            let but: Vec<String> = [hold, end].into_iter().flatten().collect();
            format!("its charge is {}, but {}", charge.status.as_str(), but.join(" and "))
        });
    }
    tally
}
