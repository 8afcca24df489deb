//! processor
pub mod saga;
