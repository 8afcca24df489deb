//! The immutable columns of a charge, which are enough to call the gateway.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The reason to park a message whose charge differs from the row's or from another message's.
pub const CONFLICT: &str = "differs: this payment was already taken up as a different charge";

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    pub payment_id: Uuid,
    pub user_id: Uuid,
    pub client_number: String,
    pub service_id: String,
    /// Minor units, 1 to 2^53 - 1.
    pub amount: i64,
    /// W3C trace context of the request that created the payment.
    pub traceparent: Option<String>,
}

/// The ids of a charge: of its payment, and of its user, who says which database it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChargeKey {
    pub payment_id: Uuid,
    pub user_id: Uuid,
}

impl Charge {
    pub fn key(&self) -> ChargeKey {
        ChargeKey { payment_id: self.payment_id, user_id: self.user_id }
    }

    /// Whether both are the same charge. The trace is not compared: it may differ when an event is emitted again.
    pub fn is_same(&self, other: &Charge) -> bool {
        let Charge { payment_id, user_id, client_number, service_id, amount, traceparent: _ } = self;
        *payment_id == other.payment_id
            && *user_id == other.user_id
            && *client_number == other.client_number
            && *service_id == other.service_id
            && *amount == other.amount
    }

    /// A hash that is equal for equal charges, see [`Charge::is_same`].
    pub fn fingerprint(&self) -> String {
        let Charge { payment_id, user_id, client_number, service_id, amount, traceparent: _ } = self;
        let mut hash = Sha256::new();
        hash.update(payment_id.as_bytes());
        hash.update(user_id.as_bytes());
        hash.update(amount.to_be_bytes());
        // The length keeps the two texts apart.
        hash.update((client_number.len() as u64).to_be_bytes());
        hash.update(client_number.as_bytes());
        hash.update(service_id.as_bytes());
        hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_equal_where_charges_are_the_same() {
        let charge = Charge {
            payment_id: Uuid::from_u128(1),
            user_id: Uuid::from_u128(2),
            client_number: "12".into(),
            service_id: "3".into(),
            amount: 4,
            traceparent: None,
        };
        let others = [
            Charge { traceparent: Some("00-1".into()), ..charge.clone() },
            Charge { payment_id: Uuid::from_u128(2), ..charge.clone() },
            Charge { user_id: Uuid::from_u128(1), ..charge.clone() },
            Charge { amount: 5, ..charge.clone() },
            Charge { client_number: "1".into(), service_id: "23".into(), ..charge.clone() },
        ];
        for other in others {
            assert_eq!(charge.fingerprint() == other.fingerprint(), charge.is_same(&other), "{other:?}");
        }
    }
}
