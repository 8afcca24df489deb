//! Reads the answers of the search index: pure.
//!
//! * An answer that is not whole is an error.
//! * A hit that is not the user's is an error: no mistake of an index shows a payment to somebody else.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use saga::contract;
use serde_json::Value;
use uuid::Uuid;

use super::{Highlight, Hit, Page};
use crate::store::{AcceptedPayment, Payment};

/// The services that the words of a text name.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// The ids by word.
    ids: Vec<Vec<String>>,
    /// The highlighted name by id.
    names: BTreeMap<String, String>,
}

impl Services {
    /// The services that the word of this number names.
    pub fn named_by(&self, word: usize) -> &[String] {
        self.ids.get(word).map_or(&[], Vec::as_slice)
    }
}

fn hits(answer: &Value) -> Result<&[Value]> {
    ensure!(answer["timed_out"] == Value::Bool(false), "the index gave up before it had searched all");
    let hits = answer.pointer("/hits/hits").and_then(Value::as_array);
    hits.map(Vec::as_slice).context("an answer of the index has no hits")
}

fn highlighted(hit: &Value, field: &str) -> Option<String> {
    Some(hit["highlight"][field].as_array()?.first()?.as_str()?.to_owned())
}

pub(super) fn services(answer: &Value, words: usize) -> Result<Services> {
    let mut services = Services { ids: vec![Vec::new(); words], names: BTreeMap::new() };
    for hit in hits(answer)? {
        let id = hit["_source"]["service_id"].as_str().context("a service in the index has no service_id")?;
        for number in hit["matched_queries"].as_array().into_iter().flatten() {
            let word = number.as_str().and_then(|number| services.ids.get_mut(number.parse::<usize>().ok()?));
            word.context("the index names a word that was not asked for")?.push(id.to_owned());
        }
        if let Some(name) = highlighted(hit, "name") {
            services.names.insert(id.to_owned(), name);
        }
    }
    Ok(services)
}

pub(super) fn page(answer: &Value, user_id: Uuid, limit: u64, services: &Services) -> Result<Page> {
    let limit = usize::try_from(limit)?;
    let all = hits(answer)?;
    let mut found = Vec::with_capacity(limit.min(all.len()));
    for hit in all.iter().take(limit) {
        let payment: contract::Payment = serde::Deserialize::deserialize(&hit["_source"])
            .ok()
            .context("a document of the index is no payment: rebuild the index")?;
        ensure!(
            payment.user_id == user_id,
            "the index answered with payment {} of another user",
            payment.payment_id
        );
        let highlight = Highlight {
            client_number: highlighted(hit, "client_number")
                .or_else(|| highlighted(hit, "client_number.digits")),
            service_name: services.names.get(&payment.service_id).cloned(),
        };
        found.push(Hit { payment: of_event(payment), highlight });
    }
    let last = found.last().map(|hit| hit.payment.accepted.payment_id);
    Ok(Page { next: last.filter(|_| all.len() > limit), hits: found })
}

/// The payment as an event has it.
fn of_event(event: contract::Payment) -> Payment {
    Payment {
        accepted: AcceptedPayment {
            user_id: event.user_id,
            payment_id: event.payment_id,
            client_number: event.client_number,
            service_id: event.service_id,
            amount: event.amount,
            initiated_at: event.initiated_at,
            expires_at: event.expires_at,
        },
        status: event.status,
        reason: event.reason,
        version: event.version,
        authorized_at: event.authorized_at,
        completed_at: event.completed_at,
        rejected_at: event.rejected_at,
        failed_at: event.failed_at,
        cancelled_at: event.cancelled_at,
        cancel_requested_at: event.cancel_requested_at,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const USER: &str = "0198c0de-0000-7000-8000-000000000001";

    fn golden() -> Value {
        let path = format!("{}/../saga/golden/payment.completed.v1.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn answer(hits: &Value) -> Value {
        json!({"timed_out": false, "hits": {"hits": hits}})
    }

    fn electricity() -> Services {
        let found = json!([{"_source": {"service_id": "electricity", "name": "Electricity"},
            "matched_queries": ["0"], "highlight": {"name": ["<em>El</em>ectricity"]}}]);
        services(&answer(&found), 1).unwrap()
    }

    #[test]
    fn a_page_has_payments_with_what_matched_and_knows_whether_another_follows() {
        let (user, services) = (USER.parse().unwrap(), electricity());
        let hit =
            json!({"_source": golden(), "highlight": {"client_number.digits": ["<em>0812</em>34567890"]}});
        let found = page(&answer(&json!([hit, hit])), user, 1, &services).unwrap();
        assert_eq!(found.hits.len(), 1);
        let Hit { payment, highlight } = &found.hits[0];
        assert_eq!(
            (payment.status.as_str(), payment.accepted.amount, payment.version),
            ("completed", 15_000, 3)
        );
        assert_eq!(highlight.client_number.as_deref(), Some("<em>0812</em>34567890"));
        assert_eq!(highlight.service_name.as_deref(), Some("<em>El</em>ectricity"));
        assert_eq!(found.next, Some(payment.accepted.payment_id));
        let last = page(&answer(&json!([hit])), user, 1, &services).unwrap();
        assert_eq!(last.next, None);
        assert_eq!(
            page(&answer(&json!([])), user, 1, &services).unwrap(),
            Page { hits: Vec::new(), next: None }
        );
    }

    #[test]
    fn a_hit_of_another_user_is_no_answer() {
        let hit = json!([{"_source": golden()}]);
        let refusal = page(&answer(&hit), Uuid::from_u128(1), 20, &Services::default()).unwrap_err();
        assert!(refusal.to_string().contains("another user"), "{refusal}");
    }

    #[test]
    fn an_answer_that_is_not_whole_is_none() {
        let user = USER.parse().unwrap();
        for broken in [
            json!({"timed_out": true, "hits": {"hits": []}}),
            json!({"hits": {"hits": []}}),
            json!({"timed_out": false}),
            answer(&json!([{"_source": {"payment_id": "x"}}])),
            answer(&json!([{}])),
        ] {
            assert!(page(&broken, user, 20, &Services::default()).is_err(), "{broken}");
        }
        let stranger = json!([{"_source": {"service_id": "gas"}, "matched_queries": ["7"]}]);
        assert!(services(&answer(&stranger), 1).is_err());
    }
}
