//! Named points between two effects, at which a test can end the process.
//!
//! * A build without the feature `failpoints` has none of them.
//! * `FAILPOINTS` chooses the actions, e.g. `after_produce=10*off->return`. `return` ends the process at once, as
//!   `kill -9` would; the other actions are those of the crate `fail`.

macro_rules! failpoints {
    ($($(#[$reason:meta])* $variant:ident = $name:literal,)*) => {
        /// The failpoints, in the order in which a transaction passes them.
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
    /// A row is read and routed; no sink has it.
    BeforeProduce = "before_produce",
    /// The producer has it; the broker may have it.
    AfterProduce = "after_produce",
    /// Kafka has acknowledged all of a transaction; RabbitMQ perhaps not.
    AfterKafka = "after_kafka",
    /// RabbitMQ has acknowledged all of a transaction; Kafka perhaps not.
    AfterRabbit = "after_rabbit",
    /// Every sink has acknowledged; the checkpoint is not written.
    BeforeCheckpoint = "before_checkpoint",
    /// The checkpoint is acknowledged; Postgres does not know.
    AfterCheckpoint = "after_checkpoint",
    /// The position is confirmed to Postgres.
    AfterConfirm = "after_confirm",
}

/// The process reaches this failpoint.
#[cfg(feature = "failpoints")]
pub fn hit(failpoint: Failpoint) {
    fail::fail_point!(failpoint.name(), |_| std::process::abort());
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_: Failpoint) {}
