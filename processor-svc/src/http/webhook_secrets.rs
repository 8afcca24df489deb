//! The secrets by which the gateway signs webhooks: one, or several with commas between, all of which hold while one is being changed.
//!
//! * Those that came from a file are read anew for each webhook: another secret needs no restart. While the file cannot be read, or has
//!   malformed ones, those before hold.

use std::str::FromStr;

use secret_files::Live;
use standardwebhooks::{Webhook, WebhookError};
use warp::http::HeaderMap;

/// Of a key of 24 bytes, the shortest that Standard Webhooks allows. An empty one is valid base64, and anybody could sign with it.
const BASE64_CHARS_MIN: usize = 32;

// No Debug: it would print secrets.
#[derive(Clone)]
pub struct WebhookSecrets(Live<Secrets>);

struct Secrets(Vec<Webhook>);

impl WebhookSecrets {
    /// # Errors
    /// When none of them has signed this, just now.
    pub fn verify(&self, body: &[u8], headers: &HeaderMap) -> Result<(), WebhookError> {
        let mut why = WebhookError::InvalidSignature;
        for webhook in &self.0.current().0 {
            match webhook.verify(body, headers) {
                Ok(()) => return Ok(()),
                Err(error) => why = error,
            }
        }
        Err(why)
    }
}

impl FromStr for WebhookSecrets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Live::new(text).map(Self)
    }
}

impl FromStr for Secrets {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let webhook = |secret: &str| {
            let secret = secret.trim();
            let digits = secret.strip_prefix("whsec_").unwrap_or(secret).trim_end_matches('=');
            let is_long = digits.len() >= BASE64_CHARS_MIN;
            let webhook = Webhook::new(secret).map_err(|error| error.to_string())?;
            is_long
                .then_some(webhook)
                .ok_or_else(|| "it is shorter than 24 bytes, and can be guessed".to_owned())
        };
        Ok(Self(text.split(',').map(webhook).collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OLD: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn signed(secret: &str) -> HeaderMap {
        let at = Timestamp::now().as_second();
        let signature = Webhook::new(secret).unwrap().sign("msg_1", at, b"{}").unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("webhook-id", "msg_1".parse().unwrap());
        headers.insert("webhook-timestamp", at.into());
        headers.insert("webhook-signature", signature.parse().unwrap());
        headers
    }

    #[test]
    fn each_of_several_secrets_holds_and_no_other() {
        for (given, new, old) in [
            (NEW.to_owned(), true, false),
            (format!("{NEW}, {OLD}"), true, true),
            (format!("{OLD},{NEW}"), true, true),
            (OLD.to_owned(), false, true),
        ] {
            let secrets: WebhookSecrets = given.parse().unwrap();
            assert_eq!(secrets.verify(b"{}", &signed(NEW)).is_ok(), new, "{given}");
            assert_eq!(secrets.verify(b"{}", &signed(OLD)).is_ok(), old, "{given}");
            assert!(secrets.verify(b"[]", &signed(NEW)).is_err(), "another body");
        }
    }

    #[test]
    fn a_secret_is_changed_in_its_file() {
        let file = std::env::temp_dir().join(format!("webhook-secrets-{}", std::process::id()));
        let holds = |secrets: &WebhookSecrets, content: &str| {
            std::fs::write(&file, content).unwrap();
            [NEW, OLD].map(|secret| secrets.verify(b"{}", &signed(secret)).is_ok())
        };
        std::fs::write(&file, OLD).unwrap();
        let secrets = secret_files::take("WEBHOOK_SECRET_FILE", &file).unwrap();
        let secrets: WebhookSecrets = secrets.parse().unwrap();
        assert_eq!(holds(&secrets, &format!("{OLD}\n")), [false, true]);
        assert_eq!(holds(&secrets, &format!("{NEW},{OLD}\n")), [true, true]);
        assert_eq!(holds(&secrets, NEW), [true, false]);
        // The one that was withdrawn does not come back.
        assert_eq!(holds(&secrets, "whsec_?"), [true, false]);
        std::fs::remove_file(&file).unwrap();
        assert!(secrets.verify(b"{}", &signed(OLD)).is_err());
    }

    #[test]
    fn a_malformed_secret_among_others_is_refused() {
        let short = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2La";
        let padded = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLQ==";
        for text in [
            "",
            ",",
            "whsec_",
            short,
            padded,
            "whsec_not base64",
            &format!("{NEW},"),
            &format!("{NEW},{short}"),
        ] {
            assert!(text.parse::<WebhookSecrets>().is_err(), "{text:?}");
        }
    }
}
