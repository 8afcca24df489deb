//! How much there is to emit at a time; sinks wait for more of it accordingly.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    Small,
    Medium,
    Large,
}
