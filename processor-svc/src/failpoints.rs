//! Failpoints: named places between two effects, at which a test ends or delays the process.
//!
//! * A build without the feature `failpoints` contains none of them.
//! * `FAILPOINTS` sets an action per failpoint, e.g. `after_call=10*off->return;before_intent=sleep(20)`. `return` ends the
//!   process at once, as `kill -9` would. The other actions are those of the crate `fail`.

macro_rules! failpoints {
    ($($(#[$reason:meta])* $variant:ident = $name:literal,)*) => {
        /// The failpoints, in the order in which a charge may pass them.
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
    /// The outcome is committed. Neither Redis nor the next call or inquiry knows it.
    AfterOutcome = "after_outcome",
    /// The outcome is handed to Redis. The result of the inquiry is not recorded.
    AfterCacheWrite = "after_cache_write",
    /// The claim is committed.
    BeforeInquiry = "before_inquiry",
    AfterInquiry = "after_inquiry",
    /// An inquiry found charges that must not stand.
    BeforeVoid = "before_void",
    AfterVoid = "after_void",
    /// The inquiry is due in the database. The due queue does not know it.
    AfterHasten = "after_hasten",
    /// The cancel is committed. The offset of the request is not stored.
    AfterCancel = "after_cancel",
}

/// Runs the action of this failpoint.
#[cfg(feature = "failpoints")]
pub fn hit(failpoint: Failpoint) {
    fail::fail_point!(failpoint.name(), |_| std::process::abort());
}

#[cfg(not(feature = "failpoints"))]
pub fn hit(_: Failpoint) {}
