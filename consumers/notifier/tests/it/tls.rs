//! Webhooks over TLS: only to who can prove the name.

use rcgen::generate_simple_self_signed;
use uuid::Uuid;

use crate::harness::Harness;
use crate::receiver::Receiver;

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_goes_only_where_a_trusted_certificate_names_the_host() {
    let harness = Harness::new().await;
    let trusted = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let unknown = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = std::env::temp_dir().join(format!("notifier-ca-{}.pem", Uuid::new_v4()));
    std::fs::write(&file, trusted.cert.pem()).unwrap();
    let (known, stranger) = (Receiver::with_tls(&trusted).await, Receiver::with_tls(&unknown).await);
    let variables = [("SSL_CERT_FILE", file.to_str().unwrap())];
    let notifier = harness.process_with(&["--retries-s=3600"], &variables).await;
    let secret = notifier.endpoint("trusted", format!("https://localhost:{}/", known.address.port())).await;
    notifier.endpoint("unknown", format!("https://localhost:{}/", stranger.address.port())).await;
    notifier.endpoint("misnamed", format!("https://127.0.0.1:{}/", known.address.port())).await;
    harness.end_payment(Uuid::now_v7(), "completed");
    harness.until("channel = 'trusted' and delivered_at is not null", 1).await;
    known.received("/")[0].verify(&secret);
    for channel in ["unknown", "misnamed"] {
        let failed = format!("channel = '{channel}' and attempts = 1 and last_error = 'TLS failed'");
        harness.until(&failed, 1).await;
    }
    assert!(stranger.received("/").is_empty());
    std::fs::remove_file(file).unwrap();
    notifier.stop().await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_certificate_authority_it_does_not_start() {
    let harness = Harness::new().await;
    let empty = std::env::temp_dir().join(format!("notifier-no-ca-{}.pem", Uuid::new_v4()));
    std::fs::write(&empty, "").unwrap();
    let variables = [("SSL_CERT_FILE", empty.to_str().unwrap()), ("SSL_CERT_DIR", "")];
    let error = harness.refused(&variables).await;
    assert!(error.contains("no certificate authority"), "{error}");
    std::fs::remove_file(empty).unwrap();
    harness.finish().await;
}
