use super::*;

fn end(event: &str, service_id: &str, amount: i64) -> PaymentEnd {
    let payment = EndedPayment {
        payment_id: "0198c0de-0000-7000-8000-00000000000a".parse().unwrap(),
        user_id: "0198c0de-0000-7000-8000-00000000000b".parse().unwrap(),
        version: 3,
        status: event.to_owned(),
        service_id: service_id.to_owned(),
        amount,
        reason: None,
    };
    PaymentEnd { payment, ended_at: "2026-01-02T03:04:05.678901Z".parse().unwrap() }
}

#[test]
fn the_body_of_a_webhook_is_the_contract_byte_for_byte() {
    let body = webhook(&end("completed", "electricity", 15_000)).unwrap();
    let data = concat!(
        r#"{"payment_id":"0198c0de-0000-7000-8000-00000000000a","user_id":"0198c0de-0000-7000-8000-00000000000b","#,
        r#""version":3,"status":"completed","service_id":"electricity","amount":15000,"reason":null}"#,
    );
    let head = r#"{"type":"payment.completed.v1","timestamp":"2026-01-02T03:04:05.678901Z","data":"#;
    assert_eq!(String::from_utf8(body).unwrap(), format!("{head}{data}}}"));
    assert_eq!(end("failed", "x", 1).message_id(), "0198c0de-0000-7000-8000-00000000000a-3");
}

#[test]
fn each_end_is_said_and_what_others_wrote_is_no_html() {
    for (event, says) in [
        ("completed", "It was charged."),
        ("cancelled", "You cancelled it"),
        ("rejected", "Your balance"),
        ("failed", "not accepted"),
    ] {
        let email = email(&end(event, "<b>\"Water\" & 'Co'</b>", 105));
        assert!(
            email.text.contains(says) && email.text.contains("1.05 to <b>\"Water\" & 'Co'</b>"),
            "{email:?}"
        );
        assert!(email.html.contains("&lt;b&gt;&quot;Water&quot; &amp; &#39;Co&#39;&lt;/b&gt;"), "{email:?}");
        assert!(!email.html.contains("<b>"));
        assert!(email.subject.ends_with(event));
    }
}
