//! Failpoints: named places between two effects, at which a test ends or delays the process.
//!
//! * A build without the feature `failpoints` contains none of them.
//! * `FAILPOINTS` sets an action per failpoint, e.g. `after_call=10*off->return;before_intent=sleep(20)`. `return` ends the
//!   process at once, as `kill -9` would. The other actions are those of the crate `fail`.

use strum::{IntoStaticStr, VariantArray};

/// The failpoints, in the order in which a charge may pass them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Failpoint {
    BeforeIntent,
    AfterIntent,
    AfterAck,
    BeforeCall,
    AfterCall,
    BeforeOutcome,
    /// The outcome is committed. Neither Redis nor the next call or inquiry knows it.
    AfterOutcome,
    /// The outcome is handed to Redis. The result of the inquiry is not recorded.
    AfterCacheWrite,
    /// The claim is committed.
    BeforeInquiry,
    AfterInquiry,
    /// An inquiry found charges that must not stand.
    BeforeVoid,
    AfterVoid,
    /// The inquiry is due in the database. The due queue does not know it.
    AfterHasten,
    /// The cancel is committed. The offset of the request is not stored.
    AfterCancel,
}

impl Failpoint {
    pub const ALL: &[Failpoint] = Failpoint::VARIANTS;

    /// The name in FAILPOINTS.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Runs the action of this failpoint.
#[cfg(feature = "failpoints")]
pub fn hit(failpoint: Failpoint) {
    fail::fail_point!(failpoint.name(), |_| std::process::abort());
}

#[cfg(not(feature = "failpoints"))]
pub fn hit(_: Failpoint) {}
