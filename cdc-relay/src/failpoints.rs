//! Named places between two effects, at which a test can end the process. Nothing of this is in a build without the
//! feature `failpoints`.
//!
//! `FAILPOINTS` says what happens where, e.g. `after_produce=10*off->return`. `return` ends the process on the spot,
//! as `kill -9` would; the other actions are those of the crate `fail`.

macro_rules! places {
    ($($(#[$reason:meta])* $variant:ident = $name:literal,)*) => {
        /// The places, in the order in which a transaction passes them.
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

places! {
    /// A row was read and routed; no sink has it.
    BeforeProduce = "before_produce",
    /// The producer has it; the broker may have it.
    AfterProduce = "after_produce",
    /// Kafka has acknowledged all of a transaction; RabbitMQ perhaps not.
    AfterKafka = "after_kafka",
    /// RabbitMQ has acknowledged all of a transaction; Kafka perhaps not.
    AfterRabbit = "after_rabbit",
    /// Every sink has acknowledged; the checkpoint does not say so.
    BeforeCheckpoint = "before_checkpoint",
    /// The checkpoint is acknowledged; Postgres does not know.
    AfterCheckpoint = "after_checkpoint",
    /// The position was confirmed to Postgres.
    AfterConfirm = "after_confirm",
}

/// This place is reached.
#[cfg(feature = "failpoints")]
pub fn hit(place: Failpoint) {
    fail::fail_point!(place.name(), |_| std::process::abort());
}

#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn hit(_: Failpoint) {}
