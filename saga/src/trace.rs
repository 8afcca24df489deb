//! W3C trace context: one `traceparent` per payment.
//!
//! * The rows of a payment carry it through the whole saga.
//! * A missing or malformed header is replaced by a new root.

use uuid::Uuid;

/// The incoming header if it is well formed, a new root otherwise.
pub fn traceparent_or_new(incoming: Option<&str>) -> String {
    match incoming {
        Some(value) if is_valid(value) => value.to_owned(),
        Some(_) | None => new_root(),
    }
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case, ids not all zero (W3C Trace Context, section 3.2).
pub fn is_valid(value: &str) -> bool {
    let bytes = value.as_bytes();
    let lower_hex = |range: std::ops::Range<usize>| {
        bytes[range].iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b))
    };
    let not_zero = |range: std::ops::Range<usize>| bytes[range].iter().any(|b| *b != b'0');
    bytes.len() == 55
        && value.starts_with("00-")
        && bytes[35] == b'-'
        && bytes[52] == b'-'
        && lower_hex(3..35)
        && lower_hex(36..52)
        && lower_hex(53..55)
        && not_zero(3..35)
        && not_zero(36..52)
}

fn new_root() -> String {
    let trace = Uuid::new_v4();
    let span = Uuid::new_v4().as_u64_pair().1;
    format!("00-{}-{span:016x}-01", trace.simple())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_well_formed_header_is_kept() {
        assert_eq!(traceparent_or_new(Some(GOOD)), GOOD);
    }

    #[test]
    fn a_malformed_header_is_replaced_by_a_valid_root() {
        let zero_trace = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        let upper = GOOD.to_uppercase();
        for bad in ["", "00", "zz", &GOOD[..54], zero_trace, upper.as_str()] {
            let made = traceparent_or_new(Some(bad));
            assert_ne!(made, bad);
            assert!(is_valid(&made), "{made}");
        }
    }
}
