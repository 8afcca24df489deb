//! Compares the terms of an event with the terms of the reader's own row of the payment.
//!
//! * A service that acts on another service's event compares the terms first. It never acts on terms that differ.
//! * Terms never change during the life of a payment, so a duplicate has the same terms as the original.

use std::fmt;
use std::sync::Arc;

/// The terms of a payment: amount, service and client number. Cheap to clone, since a batch holds many.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// Minor units.
    pub amount: i64,
    pub service_id: Arc<str>,
    /// `None` where the row does not have it: the ledger's.
    pub client_number: Option<Arc<str>>,
}

impl Terms {
    /// The difference between these terms, which are our own row's, and `said`, the terms of an event; `None` if they
    /// agree. A client number is compared where both have one.
    pub fn difference(&self, said: &Terms) -> Option<Difference> {
        let Terms { amount, service_id, client_number } = self;
        let number_differs =
            matches!((client_number, &said.client_number), (Some(ours), Some(theirs)) if ours != theirs);
        let agree = *amount == said.amount && *service_id == said.service_id && !number_differs;
        (!agree).then(|| Difference { ours: self.clone(), said: said.clone() })
    }
}

/// The terms of a row and of an event, which must be equal and are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub ours: Terms,
    pub said: Terms,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { ours, said } = self;
        f.write_str("differs: the event says")?;
        let mut separator = " ";
        if said.amount != ours.amount {
            write!(f, "{separator}amount {} where our row has {}", said.amount, ours.amount)?;
            separator = ", ";
        }
        if said.service_id != ours.service_id {
            write!(f, "{separator}service {:?} where our row has {:?}", said.service_id, ours.service_id)?;
            separator = ", ";
        }
        if let (Some(said), Some(ours)) = (&said.client_number, &ours.client_number)
            && said != ours
        {
            write!(f, "{separator}client number {said:?} where our row has {ours:?}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(amount: i64, service: &str, number: Option<&str>) -> Terms {
        Terms { amount, service_id: service.into(), client_number: number.map(Into::into) }
    }

    #[test]
    fn each_term_is_compared_where_both_sides_have_it() {
        let ours = terms(15_000, "electricity", Some("0812"));
        for said in [ours.clone(), terms(15_000, "electricity", None)] {
            assert_eq!(ours.difference(&said), None);
            assert_eq!(said.difference(&ours), None);
        }
        for (said, text) in [
            (terms(1, "electricity", None), "differs: the event says amount 1 where our row has 15000"),
            (
                terms(15_000, "gas", Some("0812")),
                "differs: the event says service \"gas\" where our row has \"electricity\"",
            ),
            (
                terms(15_000, "electricity", Some("")),
                "differs: the event says client number \"\" where our row has \"0812\"",
            ),
            (
                terms(1, "gas", Some("1")),
                "differs: the event says amount 1 where our row has 15000, service \"gas\" where our row has \
                 \"electricity\", client number \"1\" where our row has \"0812\"",
            ),
        ] {
            assert_eq!(ours.difference(&said).map(|d| d.to_string()), Some(text.to_owned()));
        }
    }
}
