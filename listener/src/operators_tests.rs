//! Tests who is admitted to an admin listener, and who may write there.

use warp::http::Request;

use super::*;

const TOKEN: &str = "0123456789abcdef";

fn operators(token: Option<&str>, hosts: &[&str]) -> Operators {
    Operators {
        admin_token: token.map(|token| token.parse().unwrap()),
        admin_hosts: hosts.iter().map(|host| host.parse().unwrap()).collect(),
    }
}

fn parts(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

#[test]
fn a_listener_answers_to_its_names() {
    let known = operators(None, &["payments.internal", "10.0.0.7:9600", "[fd00::7]"]);
    for (host, admitted) in [
        ("localhost", true),
        ("LocalHost:21", true),
        ("127.0.0.1:21023", true),
        ("127.1.2.3", true),
        ("[::1]:80", true),
        ("payments.internal", true),
        ("Payments.Internal:8080", true),
        ("10.0.0.7:9600", true),
        ("[fd00::7]:1", true),
        ("10.0.0.7", false),
        ("10.0.0.7:9601", false),
        ("attacker.example", false),
        ("localhost.attacker.example", false),
        ("127.0.0.1.attacker.example", false),
        ("localhost.", false),
        ("2130706433", false),
        ("0.0.0.0", false),
        ("x.payments.internal", false),
    ] {
        let verdict = known.admit(&parts("GET", "/", &[("host", host)]));
        assert_eq!(
            verdict.map_err(|refusal| refusal.reason),
            if admitted { Ok(()) } else { Err(Reason::Misdirected) },
            "{host}"
        );
    }
    assert!(known.admit(&parts("GET", "/", &[])).is_err(), "without a name");
    assert!(known.admit(&parts("GET", "http://attacker.example/", &[("host", "localhost")])).is_err());
    assert!(known.admit(&parts("GET", "http://localhost/", &[("host", "localhost")])).is_ok());
}

#[test]
fn a_page_of_another_origin_is_not_answered() {
    for (origin, admitted) in [
        ("http://localhost:9600", true),
        ("https://localhost:9600", true),
        ("http://LOCALHOST:9600", true),
        ("http://localhost", false),
        ("http://localhost:9601", false),
        ("http://127.0.0.1:9600", false),
        ("http://attacker.example", false),
        ("ftp://localhost:9600", false),
        ("localhost:9600", false),
        ("null", false),
        ("", false),
    ] {
        for method in ["GET", "POST"] {
            let head = parts(method, "/", &[("host", "localhost:9600"), ("origin", origin)]);
            let verdict = operators(Some(TOKEN), &[]).admit(&head).map_err(|refusal| refusal.reason);
            assert_eq!(verdict, if admitted { Ok(()) } else { Err(Reason::ForeignOrigin) }, "{origin}");
        }
    }
}

#[test]
fn who_writes_shows_the_token_and_says_what() {
    let right = format!("Bearer {TOKEN}");
    let json = ("content-type", "application/json");
    let cases = [
        ("POST", Some(TOKEN), vec![json, ("authorization", &right)], Ok(())),
        ("POST", Some(TOKEN), vec![json, ("authorization", "bEARER  0123456789abcdef")], Ok(())),
        ("DELETE", Some(TOKEN), vec![("authorization", &right)], Ok(())),
        ("PUT", Some(TOKEN), vec![("authorization", &right)], Err(Reason::MediaType)),
        ("POST", Some(TOKEN), vec![json], Err(Reason::Unauthorized)),
        (
            "POST",
            Some(TOKEN),
            vec![json, ("authorization", "Bearer 0123456789abcdeF")],
            Err(Reason::Unauthorized),
        ),
        (
            "POST",
            Some(TOKEN),
            vec![json, ("authorization", "Bearer 0123456789abcde")],
            Err(Reason::Unauthorized),
        ),
        ("POST", Some(TOKEN), vec![json, ("authorization", TOKEN)], Err(Reason::Unauthorized)),
        ("POST", Some(TOKEN), vec![json, ("authorization", "Bearer")], Err(Reason::Unauthorized)),
        ("POST", None, vec![json, ("authorization", &right)], Err(Reason::Forbidden)),
    ];
    for (method, token, headers, verdict) in cases {
        let found = operators(token, &[]).may_write(&parts(method, "/", &headers));
        assert_eq!(
            found.map(drop).map_err(|refusal| refusal.reason),
            verdict,
            "{method} {token:?} {headers:?}"
        );
    }
}

#[test]
fn while_the_token_is_changed_the_new_and_the_old_one_hold() {
    const NEW: &str = "fedcba9876543210";
    let verdict = |configured: &str, shown: &str| {
        let bearer = format!("Bearer {shown}");
        let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
        operators(Some(configured), &[]).may_write(&parts("POST", "/", &headers)).is_ok()
    };
    let both = format!("{NEW},{TOKEN}");
    assert!(verdict(&both, NEW) && verdict(&both, TOKEN));
    assert!(!verdict(&both, &both) && !verdict(&both, "0123456789abcdeF") && !verdict(NEW, TOKEN));
}

#[test]
fn a_token_of_a_file_is_the_one_that_the_file_has_now() {
    const NEW: &str = "fedcba9876543210";
    let file = std::env::temp_dir().join(format!("listener-token-{}", std::process::id()));
    let at_start = "a-token-of-a-file-0";
    std::fs::write(&file, at_start).unwrap();
    let known = operators(Some(&secret_files::take("ADMIN_TOKEN_FILE", &file).unwrap()), &[]);
    let may = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
        known.may_write(&parts("POST", "/", &headers)).is_ok()
    };
    for (content, new, old) in [
        (at_start.to_owned(), false, true),
        (format!("{NEW},{at_start}\n"), true, true),
        (format!("{NEW}\n"), true, false),
        // Not usable: the last one has to do, and the one that was withdrawn does not come back.
        ("short".to_owned(), true, false),
    ] {
        std::fs::write(&file, &content).unwrap();
        assert_eq!((may(NEW), may(at_start)), (new, old), "{content:?}");
    }
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_token_of_ones_own_says_who_calls() {
    const OF_ALICE: &str = "alices-0123456789";
    let token: Token = format!("alice:{OF_ALICE},bob:bobs-0123456789ab,{TOKEN}").parse().unwrap();
    let holder = |given: &str| token.holder(&HeaderValue::from_str(&format!("Bearer {given}")).unwrap());
    for (given, expected) in [
        (OF_ALICE, Some(Some("alice"))),
        ("bobs-0123456789ab", Some(Some("bob"))),
        (TOKEN, Some(None)),
        ("alice:alices-0123456789", None),
        ("somebody-elses-0123", None),
        ("", None),
    ] {
        assert_eq!(holder(given), expected.map(|holder| holder.map(str::to_owned)), "{given}");
    }
}

#[test]
fn a_token_is_long_enough_plain_and_never_shown() {
    for bad in [
        "",
        "0123456789abcdef,",
        "0123456789abcdef,short",
        "0123456789abcdef,0123456789abcdef",
        "alice:0123456789abcdef,bob:0123456789abcdef",
        "alice:short",
        "Alice:0123456789abcdef",
        ":0123456789abcdef",
        "0123456789abcdef, fedcba9876543210",
        "short",
        "0123456789 abcdef",
        "0123456789abcd\u{e9}f",
        "0123456789abcdef\n",
    ] {
        assert!(bad.parse::<Token>().is_err(), "{bad:?}");
    }
    assert!(!format!("{:?}", operators(Some(TOKEN), &["a"])).contains(TOKEN));
    for bad in ["", "a b", "a/b", "http://a", "a,b"] {
        assert!(bad.parse::<Name>().is_err(), "{bad}");
    }
}
