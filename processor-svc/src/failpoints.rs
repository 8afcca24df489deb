//! Named places between two effects, at which a test can end or delay the process. Nothing of this is in a
//! build without the feature `failpoints`.
//!
//! `FAILPOINTS` says what happens where, e.g. `after_call=10*off->return;before_intent=sleep(20)`. `return`
//! ends the process on the spot, as `kill -9` would; the other actions are those of the crate `fail`.

macro_rules! failpoints {
    ($($(#[$reason:meta])* $variant:ident = $name:literal,)*) => {
        /// The places, in the order in which a charge may pass them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failpoint { $($(#[$reason])* $variant,)* }

        impl Failpoint {
            pub const ALL: &[Failpoint] = &[$(Failpoint::$variant,)*];

            pub fn name(self) -> &'static str {
                match self { $(Failpoint::$variant => $name,)* }
            }
        }
    };
}

failpoints! {
    BeforeIntent = "before_intent",
    AfterIntent = "after_intent",
    AfterAck = "after_ack",
    BeforeCall = "before_call",
    AfterCall = "after_call",
    BeforeOutcome = "before_outcome",
    /// Committed; neither Redis nor whoever is to call or inquire next knows.
    AfterOutcome = "after_outcome",
    /// Handed to Redis; what an inquiry said is not noted.
    AfterCacheWrite = "after_cache_write",
    /// Its claim is committed.
    BeforeInquiry = "before_inquiry",
    AfterInquiry = "after_inquiry",
    /// An inquiry found what must not stay so.
    BeforeVoid = "before_void",
    AfterVoid = "after_void",
    /// The inquiry is due in the database; this process does not know.
    AfterHasten = "after_hasten",
    /// Committed; the offset of the request is not stored.
    AfterCancel = "after_cancel",
}

/// This place is reached.
#[cfg(feature = "failpoints")]
pub fn hit(place: Failpoint) {
    fail::fail_point!(place.name(), |_| std::process::abort());
}

#[cfg(not(feature = "failpoints"))]
pub fn hit(_: Failpoint) {}
