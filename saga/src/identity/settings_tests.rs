//! Tests which settings of identity fit together.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Config {
    #[command(flatten)]
    identity: Settings,
}

fn read(flags: &[&str]) -> Result<Settings, Error> {
    let program = ["program"].iter().chain(flags);
    Config::try_parse_from(program).map(|config| config.identity)
}

const JWT: [&str; 3] =
    ["--auth=jwt", "--auth-issuer=https://tenant.eu.auth0.com/", "--auth-audience=https://pay"];

fn jwt(more: &[&str]) -> Result<JwtSettings, String> {
    match read(&[&JWT[..], more].concat()) {
        Ok(Settings::Jwt(settings)) => Ok(settings),
        Ok(Settings::Header) => Err("header".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn the_default_trusts_the_gateway() {
    assert_eq!(read(&[]).unwrap(), Settings::Header);
    assert_eq!(read(&["--auth=header"]).unwrap(), Settings::Header);
}

#[test]
fn issuer_and_audience_are_enough_for_tokens() {
    let settings = jwt(&[]).unwrap();
    assert_eq!(settings.issuer, "https://tenant.eu.auth0.com/");
    assert_eq!(settings.audience, "https://pay");
    assert_eq!(settings.jwks_url.to_string(), "https://tenant.eu.auth0.com/.well-known/jwks.json");
    assert_eq!((settings.user_claim.as_str(), settings.typ, settings.leeway_seconds), ("sub", Typ::Jwt, 60));
}

#[test]
fn every_setting_of_tokens_can_be_given() {
    let settings = jwt(&[
        "--auth-jwks-url=https://keys.example/set?v=1",
        "--auth-user-claim=https://pay/user",
        "--auth-typ=AT+JWT",
        "--auth-leeway-seconds=0",
    ])
    .unwrap();
    assert_eq!(settings.jwks_url.to_string(), "https://keys.example/set?v=1");
    assert_eq!(settings.user_claim, "https://pay/user");
    assert_eq!((settings.typ, settings.leeway_seconds), (Typ::AccessToken, 0));
    let settings = jwt(&["--auth-jwks-url=", "--auth-user-claim="]).unwrap();
    assert_eq!(settings.user_claim, "sub", "what is empty is not given");
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let cases: Vec<(&[&str], &str)> = vec![
        (&["--auth=jwt"], "AUTH_ISSUER"),
        (&["--auth=jwt", "--auth-issuer="], "AUTH_ISSUER"),
        (&["--auth=jwt", "--auth-issuer=https://a"], "AUTH_AUDIENCE"),
        (&["--auth=jwt", "--auth-audience=a"], "AUTH_ISSUER"),
        (&["--auth=jwt", "--auth-issuer=a", "--auth-audience=a"], "AUTH_JWKS_URL"),
        (&["--auth-issuer=https://a"], "AUTH_ISSUER"),
        (&["--auth=header", "--auth-audience=a"], "AUTH_AUDIENCE"),
        (&["--auth-jwks-url=https://a"], "AUTH_JWKS_URL"),
        (&["--auth-user-claim=sub"], "AUTH_USER_CLAIM"),
        (&["--auth-typ=JWT"], "AUTH_TYP"),
        (&["--auth-leeway-seconds=0"], "AUTH_LEEWAY_SECONDS"),
        (&["--auth=basic"], "--auth"),
        (&["--auth-typ=id"], "--auth-typ"),
        (&["--auth-leeway-seconds=301"], "--auth-leeway-seconds"),
    ];
    for (flags, name) in cases {
        let error = read(flags).expect_err(&flags.join(" ")).to_string();
        assert!(error.contains(name), "{flags:?}: {error}");
    }
}

#[test]
fn keys_come_over_tls_or_from_this_host() {
    for (text, parts) in [
        ("https://a.example", Some(("a.example", 443, "/"))),
        ("https://a.example:8443/k?x=1#y", Some(("a.example", 8443, "/k?x=1"))),
        ("http://localhost/k", Some(("localhost", 80, "/k"))),
        ("http://127.0.0.1:8080/k", Some(("127.0.0.1", 8080, "/k"))),
        ("http://[::1]:8080/k", Some(("::1", 8080, "/k"))),
        ("http://a.example/k", None),
        ("http://10.0.0.7/k", None),
        ("http://localhost.example/k", None),
        ("ftp://localhost/k", None),
        ("https://user:secret@a.example/k", None),
        ("https:///k", None),
        ("//a.example/k", None),
        ("/k", None),
        ("a.example", None),
        ("", None),
    ] {
        let url = text.parse::<JwksUrl>();
        assert_eq!(url.as_ref().ok().map(|url| (url.host(), url.port(), url.path())), parts, "{text}");
    }
    let url: JwksUrl = "http://[::1]:8080/k".parse().unwrap();
    assert_eq!((url.authority(), url.is_tls()), ("[::1]:8080", false));
    assert!("https://a".parse::<JwksUrl>().unwrap().is_tls());
}
