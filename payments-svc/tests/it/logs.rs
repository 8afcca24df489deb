//! The text of an error for logs: what went wrong, without the values that Postgres quotes.

use anyhow::Context;
use saga::telemetry::log_text;

use crate::Payments;

const CANARY: &str = "client-7d1f3";

#[tokio::test]
async fn a_log_names_the_constraint_and_quotes_no_value() {
    let payments = Payments::new().await;
    let client = payments.pool.get().await.unwrap();
    let insert = "insert into payments (user_id, payment_id, idempotency_key, fingerprint, client_number, service_id, amount, expires_at)
                  values (gen_random_uuid(), gen_random_uuid(), $1, '', $1, 'x', 0, now())";
    let broken = client.execute(insert, &[&CANARY]).await.map(drop).context("cannot insert").unwrap_err();
    let unreadable = client.query("select $1::text::uuid", &[&CANARY]).await.map(drop).unwrap_err();
    for (error, parts) in [
        (
            broken,
            ["cannot insert: ", "violates check constraint \"payments_amount_range\"", "SQLSTATE 23514"],
        ),
        (unreadable.into(), ["ERROR: ", "data is refused", "SQLSTATE 22P02"]),
    ] {
        assert!(format!("{error:#}").contains(CANARY), "Postgres quotes the value: {error:#}");
        let text = log_text(&error);
        assert!(!text.contains(CANARY), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
    drop(client);
    payments.finish().await;
}
