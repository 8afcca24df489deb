//! Decides which addresses a webhook may be sent to. A URL, or its DNS, must not reach what only this machine reaches.
//!
//! * Public unicast addresses are admitted, over TLS. Everything in the registries of special addresses (RFC 6890) is
//!   refused: loopback, private, link-local with its metadata services, shared, multicast, documentation, benchmarks.
//! * An IPv4 address within IPv6 counts as what it is. The other forms (6to4, Teredo, NAT64) are refused.
//! * Allowed networks are admitted as well, and without TLS.

use std::net::IpAddr;

use ipnet::IpNet;

const SPECIAL: &str = "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 \
    192.0.2.0/24 192.88.99.0/24 192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 \
    2001::/23 2001:db8::/32 2002::/16 3fff::/20";
/// All of IPv6 that is handed out for unicast.
const UNICAST_V6: &str = "2000::/3";

#[derive(Clone, Debug)]
pub struct Networks {
    allowed: Vec<IpNet>,
    special: Vec<IpNet>,
    unicast_v6: IpNet,
}

impl Networks {
    /// # Errors
    /// Never: the lists above can be read.
    pub fn new(allowed: Vec<IpNet>) -> anyhow::Result<Self> {
        let special = SPECIAL.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        Ok(Self { allowed, special, unicast_v6: UNICAST_V6.parse()? })
    }

    /// Whether a webhook may be sent to this address.
    pub fn admits(&self, address: IpAddr, tls: bool) -> bool {
        let address = address.to_canonical();
        self.allowed.iter().any(|network| network.contains(&address)) || (tls && self.is_public(address))
    }

    /// Whether any network is allowed besides the public ones, and so any URL without TLS.
    pub fn allows_some(&self) -> bool {
        !self.allowed.is_empty()
    }

    fn is_public(&self, address: IpAddr) -> bool {
        let unicast = address.is_ipv4() || self.unicast_v6.contains(&address);
        unicast && !self.special.iter().any(|special| special.contains(&address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(allowed: &[&str], address: &str, tls: bool) -> bool {
        let allowed = allowed.iter().map(|network| network.parse().unwrap()).collect();
        Networks::new(allowed).unwrap().admits(address.parse().unwrap(), tls)
    }

    #[test]
    fn only_public_addresses_are_admitted() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "172.15.0.1",
            "172.32.0.1",
            "100.128.0.1",
            "198.20.0.1",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
        ] {
            assert!(admitted(&[], public, true), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.168.1.1",
            "198.19.255.255",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
            "100::1",
        ] {
            assert!(!admitted(&[], special, true), "{special}");
        }
    }

    #[test]
    fn without_tls_only_what_is_allowed_is_admitted() {
        let allowed = ["127.0.0.0/8"];
        assert!(admitted(&allowed, "127.0.0.1", false) && admitted(&allowed, "::ffff:127.0.0.1", false));
        assert!(admitted(&allowed, "1.1.1.1", true) && !admitted(&allowed, "1.1.1.1", false));
        assert!(!admitted(&allowed, "10.0.0.1", true) && !admitted(&allowed, "::1", true));
    }
}
