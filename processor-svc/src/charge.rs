//! What is charged: the immutable part of a row, enough to call the gateway.

use uuid::Uuid;

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

impl Charge {
    /// Everything but the trace, which may differ from one telling to the next.
    pub fn is_same(&self, other: &Charge) -> bool {
        let Charge { payment_id, user_id, client_number, service_id, amount, traceparent: _ } = self;
        *payment_id == other.payment_id
            && *user_id == other.user_id
            && *client_number == other.client_number
            && *service_id == other.service_id
            && *amount == other.amount
    }
}
