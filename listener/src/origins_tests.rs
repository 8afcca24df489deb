use warp::http::Request;
use warp::reply::Reply;

use super::*;

const APP: &str = "https://app.example";
const BANK: &str = "https://bank.example";
const OTHER: &str = "https://other.example";

fn origins(allowed: &[&str], credentials: &[&str]) -> Origins {
    Origins {
        cors_origins: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        cors_credentials_origins: credentials.iter().map(|text| text.parse().unwrap()).collect(),
    }
}

/// The fields of an answer, as `name: value`, without `access-control-` and those that list headers.
fn answered(origins: &Origins, method: Method, origin: Option<&str>, status: StatusCode) -> Vec<String> {
    let mut request = Request::builder().method(method).uri("/payments").header("host", "coro");
    if let Some(origin) = origin {
        request = request.header("origin", origin).header("access-control-request-method", "POST");
    }
    let grant = origins.grant(&request.body(()).unwrap().into_parts().0);
    let mut answer = status.into_response();
    answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, OPTIONS"));
    grant.write(&mut answer);
    let fields = answer.headers().iter().filter(|(name, _)| **name != ALLOW);
    let shown = fields.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
    let mut shown: Vec<String> = shown.map(|line| line.replace("access-control-", "")).collect();
    shown.retain(|line| !line.starts_with("expose-headers") && !line.starts_with("allow-headers"));
    shown.sort();
    shown
}

#[test]
fn each_page_gets_what_its_origin_is_allowed() {
    let get = |origins: &Origins, origin| answered(origins, Method::GET, origin, StatusCode::OK);
    let nobody = origins(&[], &[]);
    assert_eq!(get(&nobody, Some(APP)), [""; 0], "no word where nothing is configured");

    let some = origins(&[APP], &[BANK]);
    assert_eq!(get(&some, Some(APP)), ["allow-origin: https://app.example", "vary: Origin"]);
    let with_credentials = ["allow-credentials: true", "allow-origin: https://bank.example", "vary: Origin"];
    assert_eq!(get(&some, Some(BANK)), with_credentials);
    for foreign in [
        Some(OTHER),
        Some("null"),
        Some("https://app.example.evil"),
        Some("https://app.example:8443"),
        Some("http://app.example"),
        Some("https://APP.example"),
        Some("*"),
        Some(""),
        None,
    ] {
        assert_eq!(get(&some, foreign), ["vary: Origin"], "{foreign:?}");
    }

    let every = origins(&["*"], &[BANK]);
    assert_eq!(get(&every, Some(OTHER)), ["allow-origin: *", "vary: Origin"]);
    assert_eq!(get(&every, Some("null")), ["allow-origin: *", "vary: Origin"]);
    assert_eq!(get(&every, Some(BANK)), with_credentials, "never `*` with credentials");
    assert_eq!(get(&every, None), ["vary: Origin"]);
}

#[test]
fn a_preflight_is_answered_with_what_the_route_offers() {
    let some = origins(&[APP], &[]);
    let options = |origin, status| answered(&some, Method::OPTIONS, origin, status);
    let allowed = [
        "allow-methods: GET, POST, OPTIONS",
        "allow-origin: https://app.example",
        "max-age: 600",
        "vary: Origin",
    ];
    assert_eq!(options(Some(APP), StatusCode::NO_CONTENT), allowed);
    assert_eq!(options(Some(OTHER), StatusCode::NO_CONTENT), ["vary: Origin"]);
    let nowhere = ["allow-origin: https://app.example", "vary: Origin"];
    assert_eq!(options(Some(APP), StatusCode::NOT_FOUND), nowhere, "no route, no methods");
}

#[test]
fn an_origin_is_written_as_browsers_write_it() {
    for good in
        ["https://app.example", "http://localhost:3000", "https://[::1]:8443", "capacitor://localhost"]
    {
        assert_eq!(format!("{:?}", good.parse::<Origin>().unwrap()), good);
    }
    for bad in [
        "",
        "*",
        "null",
        "app.example",
        "https://",
        "https://app.example/",
        "https://app.example/path",
        "https://app.example?x",
        "https://App.example",
        "https://app.example:443",
        "http://app.example:80",
        "https://me@app.example",
        "https://*.example",
    ] {
        assert!(bad.parse::<Origin>().is_err(), "{bad:?}");
    }
    assert_eq!("*".parse::<AllowedOrigin>(), Ok(AllowedOrigin::Any));
}
