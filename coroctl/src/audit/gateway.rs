//! The gateway's own ledger, and the promises about charges: no statement of ours counts here that the gateway
//! contradicts.

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde::Deserialize;
use uuid::Uuid;

use super::finding::Tally;
use super::seen::Seen;
use super::words::{Charged, Status};

/// What was charged under one reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Net {
    pub charges: u32,
    pub voids: u32,
    /// Charged and not given back.
    pub amount: i128,
    /// The smallest and the largest amount of a line.
    pub lines: Option<(i64, i64)>,
}

impl Net {
    pub fn standing(self) -> i64 {
        i64::from(self.charges) - i64::from(self.voids)
    }

    pub fn is_nothing(self) -> bool {
        (self.standing(), self.amount) == (0, 0)
    }

    /// Every charge and every void was of this amount.
    pub fn is_of(self, amount: i64) -> bool {
        self.lines.is_none_or(|lines| lines == (amount, amount))
    }

    pub fn is_once(self, amount: i64) -> bool {
        (self.standing(), self.amount) == (1, i128::from(amount))
    }

    /// For people.
    pub fn told(self) -> String {
        match (self.charges, self.voids) {
            (0, 0) => "not charged".to_owned(),
            (1, 0) => format!("charged {}", self.amount),
            (charges, 0) => format!("charged {charges} times, {} in all", self.amount),
            (charges, voids) => format!("{charges} charges, {voids} voided, {} left", self.amount),
        }
    }
}

/// The gateway's ledger by reference.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub net: HashMap<Uuid, Net>,
    pub lines: u64,
    /// References that are no payment id.
    pub foreign: Vec<String>,
}

#[derive(Deserialize)]
struct Line {
    reference: String,
    amount: i64,
    kind: Entry,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Entry {
    Charge,
    Void,
}

impl Book {
    /// Takes a line of the export.
    pub fn add(&mut self, line: &[u8]) -> Result<()> {
        let text = || String::from_utf8_lossy(line).into_owned();
        let line: Line = serde_json::from_slice(line).with_context(text)?;
        self.lines += 1;
        let Ok(reference) = line.reference.parse::<Uuid>() else {
            self.foreign.push(line.reference);
            return Ok(());
        };
        let net = self.net.entry(reference).or_default();
        let (least, most) = net.lines.unwrap_or((line.amount, line.amount));
        net.lines = Some((least.min(line.amount), most.max(line.amount)));
        let amount = i128::from(line.amount);
        match line.kind {
            Entry::Charge => {
                net.charges += 1;
                net.amount += amount;
            }
            Entry::Void => {
                net.voids += 1;
                net.amount -= amount;
            }
        }
        Ok(())
    }

    pub fn of(&self, payment_id: Uuid) -> Net {
        self.net.get(&payment_id).copied().unwrap_or_default()
    }
}

/// Reads the export as it comes.
pub async fn read(gateway_url: &str) -> Result<Book> {
    let mut response =
        reqwest::get(format!("{gateway_url}/ledger")).await?.error_for_status().context("the gateway")?;
    let (mut book, mut rest) = (Book::default(), Vec::new());
    while let Some(chunk) = response.chunk().await.context("the gateway's ledger")? {
        rest.extend_from_slice(&chunk);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        for line in rest[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            book.add(line)?;
        }
        rest.drain(..whole);
    }
    anyhow::ensure!(rest.is_empty(), "the gateway's ledger ends in the middle of a line");
    Ok(book)
}

/// G1: exactly one standing charge of exactly the amount.
pub fn completed(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &seen.payments.rows {
        match payment.status {
            Status::Completed => {
                let net = seen.gateway.of(*id);
                let what = || format!("completed over {}, {}", payment.amount, net.told());
                tally.look(net.is_once(payment.amount), *id, what);
            }
            Status::Initiated
            | Status::Authorized
            | Status::Rejected
            | Status::Failed
            | Status::Cancelled => {}
        }
    }
    tally
}

/// G2: nothing is left charged.
pub fn unpaid(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &seen.payments.rows {
        match payment.status {
            Status::Rejected | Status::Failed | Status::Cancelled => {
                let net = seen.gateway.of(*id);
                tally.look(net.is_nothing(), *id, || format!("{}, {}", payment.status.as_str(), net.told()));
            }
            Status::Initiated | Status::Authorized | Status::Completed => {}
        }
    }
    tally
}

/// Charges at the gateway that our rows do not admit to.
pub fn unadmitted(seen: &Seen) -> Vec<Uuid> {
    let admitted = |id: &Uuid| seen.charges.rows.get(id).is_some_and(|row| !row.status.was_never_called());
    seen.gateway.net.iter().filter(|(id, net)| net.charges > 0 && !admitted(id)).map(|(id, _)| *id).collect()
}

/// G3: each charge has a committed intent of its amount, and its row does not say that no call was made.
pub fn intended(seen: &Seen) -> Tally {
    let mut tally = Tally { examined: seen.gateway.lines, ..Tally::default() };
    for id in unadmitted(seen) {
        tally.offends(id, || {
            let net = seen.gateway.of(id).told();
            match seen.charges.rows.get(&id) {
                Some(row) => format!("{net}, though its charge is {}", row.status.as_str()),
                None => format!("{net} without a row in charges"),
            }
        });
    }
    for (id, net) in &seen.gateway.net {
        let intent = seen.charges.rows.get(id).filter(|row| !row.status.was_never_called());
        if let Some(row) = intent.filter(|row| !net.is_of(row.amount)) {
            tally.offends(*id, || format!("{}, though its charge is of {}", net.told(), row.amount));
        }
    }
    for reference in &seen.gateway.foreign {
        tally.offends(None, || format!("a charge with the reference {reference:?}, which is no payment's"));
    }
    tally
}

/// G4: a payment ends unpaid only on a definite answer; as long as there is none, nothing ends.
pub fn definite(seen: &Seen) -> Tally {
    answered(seen).and(&awaited(seen))
}

/// Who failed or was cancelled has a charge row that says why.
fn answered(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, payment) in &seen.payments.rows {
        let charge = seen.charges.rows.get(id);
        let answer = charge.filter(|charge| charge.has_reason).map(|charge| charge.status);
        let definite = match payment.status {
            Status::Failed => matches!(answer, Some(Charged::Declined | Charged::Expired)),
            Status::Cancelled => answer == Some(Charged::Cancelled),
            Status::Initiated | Status::Authorized | Status::Completed | Status::Rejected => continue,
        };
        tally.look(definite, *id, || {
            let found = charge.map_or("missing", |charge| charge.status.as_str());
            let reason = if answer.is_none() { " without a reason" } else { "" };
            format!("{}, its charge is {found}{reason}", payment.status.as_str())
        });
    }
    tally
}

/// Whose charge is undecided has neither ended nor lost its hold.
fn awaited(seen: &Seen) -> Tally {
    let mut tally = Tally::default();
    for (id, charge) in seen.charges.rows.iter().filter(|(_, charge)| !charge.status.is_definite()) {
        let second = seen.ledger.rows.get(id).and_then(|entries| entries.second);
        let ended = seen.payments.rows.get(id).map(|payment| payment.status).filter(|s| s.has_ended());
        tally.look(second.is_none() && ended.is_none(), *id, || {
            let hold = second.map(|entry| format!("its hold ended in a {}", entry.kind.as_str()));
            let end = ended.map(|status| format!("it is {}", status.as_str()));
            let but: Vec<String> = [hold, end].into_iter().flatten().collect();
            format!("its charge is {}, but {}", charge.status.as_str(), but.join(" and "))
        });
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_was_charged_it_is_summed_exactly() {
        let mut book = Book::default();
        let reference = Uuid::from_u128(1);
        for _ in 0..2_000 {
            let line = format!(r#"{{"reference":"{reference}","amount":9007199254740991,"kind":"charge"}}"#);
            book.add(line.as_bytes()).unwrap();
        }
        assert_eq!(book.of(reference).told(), "charged 2000 times, 18014398509481982000 in all");
    }
}
