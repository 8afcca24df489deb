//! Answers that do not name our charge: of another charge, of another amount, or of nobody knows which.
//!
//! Each is a real answer and is judged by the real code, once; what that makes of it is what the model goes on with.

use std::sync::LazyLock;

use processor_svc::charge::Charge;
use processor_svc::gateway::{GatewayReply, Lookup, Repair, judge_call, judge_inquiry, judge_void};
use processor_svc::saga::Outcome;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::bounds::Break;
use crate::coro::Coro;
use crate::state::Said;

/// The content of the answer, to any request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Succeeded,
    Declined,
    Rejected,
    NotFound,
    Voided,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    None,
    Another,
    OtherAmount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    name: Name,
    claim: Claim,
}

const fn foreign(name: Name, claim: Claim) -> Foreign {
    Foreign { name, claim }
}

const UNNAMED_DECLINE: Foreign = foreign(Name::None, Claim::Declined);

impl Foreign {
    pub const ALL: &[Foreign] = &[
        UNNAMED_DECLINE,
        foreign(Name::None, Claim::Succeeded),
        foreign(Name::None, Claim::Rejected),
        foreign(Name::None, Claim::NotFound),
        foreign(Name::None, Claim::Voided),
        foreign(Name::Another, Claim::Succeeded),
        foreign(Name::Another, Claim::Declined),
        foreign(Name::Another, Claim::Rejected),
        foreign(Name::Another, Claim::NotFound),
        foreign(Name::Another, Claim::Voided),
        foreign(Name::OtherAmount, Claim::Succeeded),
        foreign(Name::OtherAmount, Claim::Declined),
    ];

    fn judged(self) -> &'static Judged {
        let place = Foreign::ALL.iter().position(|other| *other == self).unwrap();
        &JUDGED[place]
    }

    /// The finding of an inquiry from it.
    pub fn found(self) -> Lookup {
        self.judged().found.clone()
    }

    /// Whether it is taken for the confirmation of a repair.
    pub fn confirms(self, repair: &Repair) -> bool {
        match repair {
            Repair::VoidOthers { .. } => self.judged().confirms_others,
            Repair::Reverse => self.judged().confirms_reversal,
        }
    }

    /// With this status.
    fn reply(self, status: u16) -> GatewayReply {
        let mut body = match self.claim {
            Claim::Succeeded => json!({"status": "succeeded", "provider_reference": "ch_1"}),
            Claim::Declined => json!({"status": "declined", "code": "no"}),
            Claim::Rejected => json!({"type": "urn:gateway:invalid-charge"}),
            Claim::NotFound => json!({"type": "urn:gateway:charge-not-found"}),
            Claim::Voided => json!({"status": "voided", "voided": [], "barred": true}),
        };
        let Charge { payment_id, amount, .. } = charge();
        match self.name {
            Name::None => {}
            Name::Another => {
                body["reference"] = Value::from(Uuid::from_u128(2).to_string());
                body["amount"] = amount.into();
            }
            Name::OtherAmount => {
                body["reference"] = Value::from(payment_id.to_string());
                body["amount"] = (amount + 1).into();
            }
        }
        GatewayReply::Answer { status, body: body.to_string().into_bytes() }
    }
}

struct Judged {
    said: Said,
    found: Lookup,
    confirms_others: bool,
    confirms_reversal: bool,
}

static JUDGED: LazyLock<Vec<Judged>> = LazyLock::new(|| Foreign::ALL.iter().map(judge).collect());

fn judge(foreign: &Foreign) -> Judged {
    let (call, inquiry) = match foreign.claim {
        Claim::Succeeded | Claim::Voided => (200, 200),
        Claim::Declined => (402, 200),
        Claim::Rejected => (400, 400),
        Claim::NotFound => (404, 404),
    };
    let said = match judge_call(&charge(), &foreign.reply(call)) {
        Outcome::Succeeded { .. } => Said::Succeeded,
        Outcome::Declined { .. } => Said::Declined,
        Outcome::NotSent { .. } => Said::NotSent,
        Outcome::Unknown { .. } => Said::Unknown,
    };
    let confirms = |bars| judge_void(&charge(), &foreign.reply(inquiry), bars).is_ok();
    let found = judge_inquiry(&charge(), &foreign.reply(inquiry));
    Judged { said, found, confirms_others: confirms(false), confirms_reversal: confirms(true) }
}

fn charge() -> Charge {
    Charge {
        payment_id: Uuid::from_u128(1),
        user_id: Uuid::nil(),
        client_number: "1".to_owned(),
        service_id: "power".to_owned(),
        amount: 5,
        traceparent: None,
    }
}

impl Coro {
    /// The outcome of a call from it.
    pub fn said_by(&self, foreign: Foreign) -> Said {
        if self.is_broken(Break::UnnamedDeclineBelieved) && foreign == UNNAMED_DECLINE {
            return Said::Declined;
        }
        foreign.judged().said
    }
}
