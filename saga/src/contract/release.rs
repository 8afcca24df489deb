//! The reason of a release, as the ledger publishes it: `cause` or `cause:detail`.

use std::fmt;
use std::str::FromStr;

use strum::{EnumString, IntoStaticStr, VariantNames};

/// The cause of a release. Only the processor decides it, since it alone calls the gateway. `VARIANTS` are the names of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EnumString, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum ReleaseCause {
    Declined,
    Expired,
    Cancelled,
}

/// The reason of a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseReason {
    pub cause: ReleaseCause,
    /// The gateway's reason, unless it is the cause itself.
    pub detail: Option<String>,
}

impl ReleaseReason {
    pub fn new(cause: ReleaseCause, detail: Option<&str>) -> Self {
        let name: &str = cause.into();
        Self { cause, detail: detail.filter(|detail| *detail != name).map(str::to_owned) }
    }
}

impl fmt::Display for ReleaseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause.into())?;
        match &self.detail {
            Some(detail) => write!(f, ":{detail}"),
            None => Ok(()),
        }
    }
}

impl FromStr for ReleaseReason {
    type Err = strum::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (cause, detail) = match text.split_once(':') {
            Some((cause, detail)) => (cause, Some(detail)),
            None => (text, None),
        };
        Ok(Self { cause: cause.parse()?, detail: detail.map(str::to_owned) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_reason_names_its_cause() {
        let cause = |text: &str| text.parse::<ReleaseReason>().ok().map(|reason| reason.cause);
        assert_eq!(cause("declined:do_not_honor"), Some(ReleaseCause::Declined));
        assert_eq!(cause("expired"), Some(ReleaseCause::Expired));
        assert_eq!(cause("other"), None);
    }

    #[test]
    fn a_reason_is_written_as_it_is_read() {
        for text in ["cancelled", "declined:do_not_honor", "declined:a:b"] {
            assert_eq!(text.parse::<ReleaseReason>().unwrap().to_string(), text);
        }
        let same = ReleaseReason::new(ReleaseCause::Expired, Some("expired"));
        assert_eq!(same.to_string(), "expired");
    }
}
