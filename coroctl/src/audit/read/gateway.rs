//! Reads the gateway's own ledger: charges and voids, summed by reference.

use std::collections::HashMap;

use anyhow::{Context, Result};
use saga::http::install_provider;
use serde::Deserialize;
use uuid::Uuid;

/// Charges less voids under one reference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetCharge {
    pub charges: u32,
    pub voids: u32,
    /// Charged and not voided.
    pub amount: i128,
    /// The smallest and the largest amount of a line.
    pub lines: Option<(i64, i64)>,
}

impl NetCharge {
    pub fn standing(self) -> i64 {
        i64::from(self.charges) - i64::from(self.voids)
    }

    pub fn is_nothing(self) -> bool {
        (self.standing(), self.amount) == (0, 0)
    }

    /// The smallest and the largest charge or void are of these amounts.
    pub fn has_amounts(self, amounts: &[i64]) -> bool {
        self.lines.is_none_or(|(least, most)| amounts.contains(&least) && amounts.contains(&most))
    }

    pub fn is_charged_once(self, amount: i64) -> bool {
        (self.standing(), self.amount) == (1, i128::from(amount))
    }

    /// For people.
    pub fn describe(self) -> String {
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
pub struct GatewayLedger {
    pub net: HashMap<Uuid, NetCharge>,
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

impl GatewayLedger {
    /// Adds a line of the export.
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

    pub fn net_of(&self, payment_id: Uuid) -> NetCharge {
        self.net.get(&payment_id).copied().unwrap_or_default()
    }
}

/// Reads the export line by line, as it arrives.
///
/// # Errors
/// When the gateway does not answer, or its export breaks off.
pub async fn read(gateway_url: &str) -> Result<GatewayLedger> {
    install_provider();
    let mut response = reqwest::get(format!("{gateway_url}/ledger"))
        .await?
        .error_for_status()
        .context("GET /ledger of the gateway")?;
    let (mut ledger, mut rest) = (GatewayLedger::default(), Vec::new());
    while let Some(chunk) = response.chunk().await.context("the gateway's ledger breaks off")? {
        rest.extend_from_slice(&chunk);
        let whole = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        for line in rest[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            ledger.add(line)?;
        }
        rest.drain(..whole);
    }
    anyhow::ensure!(
        rest.is_empty(),
        "the gateway's ledger ends in the middle of a line: it broke off, run the audit again"
    );
    Ok(ledger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_much_was_charged_it_is_summed_exactly() {
        let mut ledger = GatewayLedger::default();
        let reference = Uuid::from_u128(1);
        for _ in 0..2_000 {
            let line = format!(r#"{{"reference":"{reference}","amount":9007199254740991,"kind":"charge"}}"#);
            ledger.add(line.as_bytes()).unwrap();
        }
        assert_eq!(ledger.net_of(reference).describe(), "charged 2000 times, 18014398509481982000 in all");
    }
}
