//! Named places between two effects, at which a test can end or delay the process. Nothing of this is in a
//! build without the feature `failpoints`.
//!
//! `FAILPOINTS` says what happens where, e.g. `after_call=1%return;before_intent=sleep(20)`. `return` ends
//! the process on the spot, as `kill -9` would; the other actions are those of the crate `fail`.

/// The places, in the order in which a charge passes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    BeforeIntent,
    AfterIntent,
    AfterAck,
    BeforeCall,
    AfterCall,
    BeforeOutcome,
    AfterOutcome,
}

impl Place {
    pub const ALL: [Place; 7] = [
        Place::BeforeIntent,
        Place::AfterIntent,
        Place::AfterAck,
        Place::BeforeCall,
        Place::AfterCall,
        Place::BeforeOutcome,
        Place::AfterOutcome,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Place::BeforeIntent => "before_intent",
            Place::AfterIntent => "after_intent",
            Place::AfterAck => "after_ack",
            Place::BeforeCall => "before_call",
            Place::AfterCall => "after_call",
            Place::BeforeOutcome => "before_outcome",
            Place::AfterOutcome => "after_outcome",
        }
    }
}

/// This place is reached.
#[cfg(feature = "failpoints")]
pub fn reach(place: Place) {
    fail::fail_point!(place.name(), |_| std::process::abort());
}

#[cfg(not(feature = "failpoints"))]
pub fn reach(_: Place) {}
