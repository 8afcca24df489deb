//! HAProxy, the edge: what clients reach, in front of the services' instances.

pub mod runtime;
pub mod slots;

use std::collections::BTreeMap;
use std::env;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit};

use super::text;
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::program::find_program;
use crate::spec::{EDGE_TIER, Spec};

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let program = find_program("haproxy").context("HAProxy is not installed")?;
    let home = layout.server_dir("haproxy")?;
    let config = home.join("haproxy.cfg");
    // Copies: the user it runs as may not be allowed to read the workspace.
    for name in ["haproxy.cfg", "not-http.lua", "weight.lua", "pay.html"] {
        layout.write_for_server(&home.join(name), &layout.compose_file(&format!("haproxy/{name}"))?)?;
    }
    if layout.is_encrypted() {
        certificates::give(layout, "haproxy", &home)?;
    }
    let argv = vec![text(&program), "-db".into(), "-f".into(), text(&config)];
    let mut env = environment(layout, &home);
    env.extend(slots(layout));
    let mut spec = super::spec(layout, "haproxy", home, argv, Port::Edge);
    spec.env = env;
    spec.tier = EDGE_TIER;
    Ok(vec![spec])
}

/// Settings, and what they are if the environment of `cargo stack up` does not say. All clients of a stack have one
/// address, so it may have everything; and a stack is for demonstrations, so it has the page to pay by hand.
const SETTINGS: [(&str, &str); 3] = [
    ("EDGE_CONNECTIONS_PER_SOURCE", "4000"),
    ("EDGE_REQUESTS_PER_SOURCE", "1000000"),
    ("EDGE_PAY_PAGE", "on"),
];

/// A setting, as the environment of `cargo stack up` gives it.
fn setting((name, default): (&'static str, &str)) -> (&'static str, String) {
    (name, env::var(name).unwrap_or_else(|_| default.to_owned()))
}

/// Where a person pays by hand, if the edge is to have that page.
pub fn pay_page(layout: &Layout) -> Option<String> {
    let is_on = |(name, value): (&str, String)| name == "EDGE_PAY_PAGE" && value == "on";
    SETTINGS.into_iter().map(setting).any(is_on).then(|| layout.http(Port::Edge, "/pay"))
}

/// Clients that may be connected at once, where open files allow it.
const CLIENTS_MAX: u64 = 16_000;

/// As many clients as there are open files for: four each, and some for everything else.
fn clients_max() -> u64 {
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    (files.saturating_sub(400) / 4).clamp(1, CLIENTS_MAX)
}

/// The origins whose pages the services allow, as the edge's configuration lists them. `*` is none of them: it is for the
/// services alone.
fn origins() -> String {
    let listed = ["CORS_ORIGINS", "CORS_CREDENTIALS_ORIGINS"].map(|name| env::var(name).unwrap_or_default());
    let named: Vec<&str> = listed.iter().flat_map(|list| list.split(',')).map(str::trim).collect();
    let named: Vec<&str> = named.into_iter().filter(|origin| !["", "*"].contains(origin)).collect();
    // The configuration needs a word.
    if named.is_empty() { "none".to_owned() } else { named.join(" ") }
}

/// What the configuration leaves open in a stack alone: the slots of instances, and the socket by which they change.
fn slots(layout: &Layout) -> BTreeMap<String, String> {
    let socket = ("EDGE_SOCKET".to_owned(), layout.edge_socket().display().to_string());
    slots::variables(layout).chain([socket]).collect()
}

/// What the configuration leaves open wherever it is used.
pub fn environment(layout: &Layout, home: &Path) -> BTreeMap<String, String> {
    let address = |port| format!("127.0.0.1:{}", layout.port(port));
    let port = |port| layout.port(port).to_string();
    let entries = [
        ("EDGE_ADDR", address(Port::Edge)),
        ("EDGE_ADMIN_ADDR", address(Port::EdgeAdmin)),
        ("EDGE_ADMIN_HOST", "localhost".to_owned()),
        ("EDGE_CONNECTIONS", clients_max().to_string()),
        ("EDGE_ORIGINS", origins()),
        ("SERVICES_INSTANCES", "slots".to_owned()),
        ("PAYMENTS_1_ADDR", address(Port::Payments)),
        ("PAYMENTS_1_ADMIN_PORT", port(Port::PaymentsAdmin)),
        ("PAYMENTS_2_ADDR", address(Port::SecondPayments)),
        ("PAYMENTS_2_ADMIN_PORT", port(Port::SecondPaymentsAdmin)),
        ("BALANCE_ADDR", address(Port::Balance)),
        ("BALANCE_ADMIN_PORT", port(Port::BalanceAdmin)),
        // Addresses need no look-up.
        ("SERVICES_DNS", String::new()),
    ];
    let home = home.display();
    let tls = match layout.is_encrypted() {
        true => [
            format!("ssl crt {home}/tls.pem ssl-min-ver TLSv1.2"),
            format!("ssl verify required ca-file {home}/ca.pem verifyhost localhost check-ssl"),
        ],
        false => [String::new(), "no-ssl".to_owned()],
    };
    let tls = ["EDGE_TLS", "SERVICES_TLS"].into_iter().zip(tls);
    entries
        .into_iter()
        .chain(tls)
        .chain(SETTINGS.map(setting))
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn the_configuration_leaves_open_what_is_given() {
        let layout = Layout::new(Some(std::env::temp_dir()), 22_000).unwrap();
        let config = layout.compose_file("haproxy/haproxy.cfg").unwrap();
        let open: BTreeSet<&str> =
            config.split("${").skip(1).filter_map(|rest| Some(rest.split_once(['}', '['])?.0)).collect();
        let (given, slots) = (environment(&layout, Path::new("/d")), slots(&layout));
        assert_eq!(open, given.keys().chain(slots.keys()).map(String::as_str).collect());
    }

    /// HAProxy reads a line up to its first empty word, and does not say that it has left out the rest.
    #[test]
    fn nothing_but_the_last_word_of_a_server_is_empty() {
        let layout = Layout::new(Some(std::env::temp_dir()), 22_000).unwrap();
        let config = layout.compose_file("haproxy/haproxy.cfg").unwrap();
        let mut given = environment(&layout, Path::new("/d"));
        given.extend(slots(&layout));
        let servers = config.lines().map(str::trim).filter(|line| line.starts_with("server"));
        for line in servers {
            let words = line.split("${").skip(1).filter_map(|rest| Some(rest.split_once(['}', '['])?.0));
            let words: Vec<&str> = words.collect();
            let before_last = words.split_last().map_or(&[][..], |(_, before)| before);
            assert!(before_last.iter().all(|word| !given[*word].is_empty()), "{line}");
        }
    }

    #[test]
    fn the_page_is_short_and_its_style_and_script_are_those_that_the_edge_allows() {
        let layout = Layout::new(Some(std::env::temp_dir()), 22_000).unwrap();
        let read = |name| layout.compose_file(name).unwrap();
        let (page, config) = (read("haproxy/pay.html"), read("haproxy/haproxy.cfg"));
        assert!(page.lines().count() <= 400, "{} lines", page.lines().count());
        for (begin, end, directive) in
            [("<style>", "</style>", "style-src"), ("<script type=\"module\">", "</script>", "script-src")]
        {
            let text = page.split_once(begin).unwrap().1.split_once(end).unwrap().0;
            let allowed = format!("{directive} 'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
            assert!(config.contains(&allowed), "compose/haproxy/haproxy.cfg has to say {allowed}");
        }
    }
}
