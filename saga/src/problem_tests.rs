//! Tests the problem documents, their page and those of the edge.

use std::collections::BTreeMap;

use super::*;

fn file(path: &str) -> String {
    std::fs::read_to_string(format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

#[tokio::test]
async fn a_problem_is_rendered_with_type_status_and_fields() {
    let response = Problem::field("amount", "must be a whole number").into_response();
    assert_eq!(response.status(), 400);
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let reply = warp::test::request()
        .reply(&warp::Filter::map(warp::any(), || Problem::malformed("expected value at line 1")))
        .await;
    assert_eq!(
        std::str::from_utf8(reply.body()).unwrap(),
        r#"{"type":"urn:coro:problem:malformed","title":"The request cannot be read.","status":400,"detail":"expected value at line 1"}"#
    );
}

#[test]
fn unavailable_says_when_to_come_back() {
    assert_eq!(Problem::unavailable().into_response().headers()[RETRY_AFTER], "1");
    assert_eq!(Problem::of(Kind::Overloaded).into_response().headers()[RETRY_AFTER], "5");
    let lasting = Problem::not_installed("There is no search.").into_response();
    assert_eq!((lasting.status().as_u16(), lasting.headers().get(RETRY_AFTER)), (503, None));
}

#[test]
fn a_401_says_how_to_sign_in() {
    for &kind in Kind::ALL {
        let response = Problem::of(kind).into_response();
        let says = response.headers().contains_key(WWW_AUTHENTICATE);
        assert_eq!(says, response.status() == 401 || kind == Kind::InsufficientScope, "{kind:?}");
    }
}

#[test]
fn a_challenge_says_what_is_wrong_with_the_token() {
    for (problem, challenge) in [
        (Problem::of(Kind::Unauthorized), "Bearer"),
        (Problem::token_missing("payments:read"), "Bearer scope=\"payments:read\""),
        (Problem::of(Kind::InvalidToken), "Bearer error=\"invalid_token\""),
        (
            Problem::insufficient_scope("payments:write"),
            "Bearer error=\"insufficient_scope\", scope=\"payments:write\"",
        ),
    ] {
        assert_eq!(problem.into_response().headers()[WWW_AUTHENTICATE], challenge);
    }
}

/// Each problem has a section of the page, whose anchor is the last segment of its type: status and title first.
#[test]
fn the_page_explains_every_problem_and_no_other() {
    let page = file("docs/problems.md");
    let mut sections: BTreeMap<&str, &str> = BTreeMap::new();
    for section in page.split("\n## ").skip(1) {
        let (anchor, text) = section.split_once('\n').unwrap();
        assert!(sections.insert(anchor.trim(), text.trim()).is_none(), "{anchor} is there twice");
    }
    for kind in Kind::ALL {
        let text = sections.remove(kind.as_str()).unwrap_or_else(|| panic!("no section {}", kind.as_str()));
        let first = format!("`{}` {}", kind.status().as_u16(), kind.title());
        assert!(text.starts_with(&first), "{} begins with {first:?}", kind.as_str());
    }
    assert!(sections.is_empty(), "no problems of ours: {sections:?}");
}

/// The documents of the edge are those of the services.
#[test]
fn the_edge_has_no_problems_of_its_own() {
    let mut seen = 0;
    for path in ["compose/haproxy/haproxy.cfg", "compose/haproxy/not-http.lua"] {
        let text = file(path);
        for document in text.split("{\"type\":").skip(1) {
            let document = document.split_once('}').unwrap().0;
            let document: serde_json::Value =
                serde_json::from_str(&format!("{{\"type\":{document}}}")).unwrap();
            let kind = document["type"].as_str().unwrap().strip_prefix("urn:coro:problem:").unwrap();
            // Filled in by each request; those to the admin listener have no id.
            let id = document["request_id"].as_str();
            let is_for_clients = !["misdirected", "foreign-origin"].contains(&kind);
            assert!(matches!(id, Some("%[unique-id]" | "%s")) == is_for_clients, "{document}");
            let kind = *Kind::ALL.iter().find(|known| known.as_str() == kind).expect(kind);
            assert_eq!(document["title"], kind.title(), "{document}");
            let status = document["status"].as_u64().unwrap();
            // A gateway has more words for "not now" than a service.
            let fits = u64::from(kind.status().as_u16()) == status
                || (kind == Kind::Unavailable && [502, 504].contains(&status));
            assert!(fits, "{document}");
            seen += 1;
        }
    }
    assert!(seen >= 18, "only {seen} documents found");
}
