//! The size of the batches to emit; a producer waits for larger ones to fill.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchSize {
    Small,
    Medium,
    Large,
}
