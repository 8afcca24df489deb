//! Connects to one of several hosts.
//!
//! * Each host has a time for its whole answer, signing in included: one that is frozen still takes connections.
//! * The host that answered last is tried first, alone. Once it fails, the next try begins with the one after it, and the others are
//!   tried at the same time: none that is frozen holds up the search for the one that will do.
//! * A caller that stops waiting before the first host's time is over has given that host up too.
//! * `target_session_attrs` decides which host will do, as in libpq.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, Connection, Error, Socket};

/// The host that is tried first, shared by all connections to a database.
#[derive(Debug, Default)]
pub struct Preferred(AtomicUsize);

impl Preferred {
    /// The indices of `count` hosts, in the order in which they are tried.
    pub fn order(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.0.load(Ordering::Relaxed);
        (0..count).map(move |index| (first + index) % count)
    }

    /// This host answered, and will do.
    pub fn succeeded(&self, host: usize) {
        self.0.store(host, Ordering::Relaxed);
    }

    /// This host of `count` did not answer, or will not do.
    pub fn failed(&self, host: usize, count: usize) {
        let next = (host + 1) % count.max(1);
        // Only the first one is given up: another may have succeeded meanwhile.
        let _kept = self.0.compare_exchange(host, next, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// The host that is tried alone. It counts as failed unless it answers, also where the caller drops the future before.
struct Alone<'a> {
    preferred: &'a Preferred,
    host: usize,
    count: usize,
    answered: bool,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.preferred.failed(self.host, self.count);
        }
    }
}

/// An open connection.
pub struct Opened<S> {
    pub client: Client,
    pub connection: Connection<Socket, S>,
    /// The index of its host.
    pub host: usize,
}

/// The number of hosts that a configuration names.
pub fn count(config: &Config) -> usize {
    config.get_hosts().len().max(config.get_hostaddrs().len()).max(1)
}

/// Connects to a host that answers within `limit` and will do.
///
/// # Errors
/// That of the host that failed last, when none will do.
pub async fn connect<T>(
    config: &Config,
    tls: &T,
    preferred: &Preferred,
    limit: Duration,
) -> Result<Opened<T::Stream>, Error>
where
    T: MakeTlsConnect<Socket> + Clone,
{
    let count = count(config);
    let open = |host: usize| async move {
        let answered = connect_to(config, tls, limit, host).await;
        match answered {
            Ok(_) => preferred.succeeded(host),
            Err(_) => preferred.failed(host, count),
        }
        answered
    };
    let mut hosts = preferred.order(count);
    let first = hosts.next().unwrap_or_default();
    let mut alone = Alone { preferred, host: first, count, answered: false };
    let answered = open(first).await;
    alone.answered = answered.is_ok();
    drop(alone);
    let mut last = match answered {
        Ok(opened) => return Ok(opened),
        Err(error) => error,
    };
    let mut others: FuturesUnordered<_> = hosts.map(open).collect();
    while let Some(answered) = others.next().await {
        match answered {
            Ok(opened) => return Ok(opened),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects to this one of the hosts, if it answers within `limit` and will do.
///
/// # Errors
/// When it does not.
pub async fn connect_to<T>(
    config: &Config,
    tls: &T,
    limit: Duration,
    host: usize,
) -> Result<Opened<T::Stream>, Error>
where
    T: MakeTlsConnect<Socket> + Clone,
{
    let config = of_host(config, host);
    // In a box: it is large, and would be in the future of whoever connects several times.
    let answered = timeout(limit, Box::pin(config.connect(tls.clone()))).await;
    // The library's error for a connection that took too long; it has no public name.
    let (client, connection) = answered.unwrap_or_else(|_| Err(Error::__private_api_timeout()))?;
    Ok(Opened { client, connection, host })
}

/// The configuration with this one of its hosts. One that names no host, or one only, stays as it is.
fn of_host(config: &Config, index: usize) -> Config {
    if count(config) == 1 {
        return config.clone();
    }
    let mut one = without_hosts(config);
    match config.get_hosts().get(index) {
        Some(Host::Tcp(name)) => one.host(name.as_str()),
        Some(Host::Unix(folder)) => one.host_path(folder),
        None => &mut one,
    };
    if let Some(address) = config.get_hostaddrs().get(index) {
        one.hostaddr(*address);
    }
    let ports = config.get_ports();
    if let Some(port) = ports.get(index).or_else(|| ports.first()) {
        one.port(*port);
    }
    one
}

/// Everything but hosts, addresses and ports. The library has no way to take a host out.
fn without_hosts(config: &Config) -> Config {
    let mut other = Config::new();
    if let Some(user) = config.get_user() {
        other.user(user);
    }
    if let Some(password) = config.get_password() {
        other.password(password);
    }
    if let Some(name) = config.get_dbname() {
        other.dbname(name);
    }
    if let Some(options) = config.get_options() {
        other.options(options);
    }
    if let Some(name) = config.get_application_name() {
        other.application_name(name);
    }
    if let Some(timeout) = config.get_connect_timeout() {
        other.connect_timeout(*timeout);
    }
    if let Some(timeout) = config.get_tcp_user_timeout() {
        other.tcp_user_timeout(*timeout);
    }
    if let Some(interval) = config.get_keepalives_interval() {
        other.keepalives_interval(interval);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        other.keepalives_retries(retries);
    }
    other
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .channel_binding(config.get_channel_binding())
        .target_session_attrs(config.get_target_session_attrs())
        // Within a host that has several addresses.
        .load_balance_hosts(config.get_load_balance_hosts());
    other
}

#[cfg(test)]
mod tests {
    // In a test an unwrap is an assertion.
    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use tokio_postgres::NoTls;

    use super::*;

    fn order(preferred: &Preferred) -> Vec<usize> {
        preferred.order(3).collect()
    }

    #[test]
    fn the_host_that_answered_last_comes_first_and_after_a_failure_the_next_one() {
        let preferred = Preferred::default();
        assert_eq!(order(&preferred), [0, 1, 2]);
        preferred.succeeded(2);
        assert_eq!(order(&preferred), [2, 0, 1]);
        preferred.failed(1, 3);
        assert_eq!(order(&preferred), [2, 0, 1], "another one failed");
        preferred.failed(2, 3);
        assert_eq!(order(&preferred), [0, 1, 2]);
    }

    /// A parameter that the copy forgets would hold for the first connection to one host only.
    #[test]
    fn one_of_several_hosts_has_all_that_the_others_have() {
        let all = "user=u password=p dbname=d options='-c a=b' application_name=n sslmode=require \
                   connect_timeout=3 tcp_user_timeout=4 keepalives=0 keepalives_idle=5 keepalives_interval=6 \
                   keepalives_retries=7 target_session_attrs=read-write channel_binding=require load_balance_hosts=random";
        for (hosts, index, one) in [
            ("host=a,b port=1,2", 1, "host=b port=2"),
            ("host=a,b port=1", 1, "host=b port=1"),
            ("host=a,/run port=1,2", 1, "host=/run port=2"),
            ("host=a,b hostaddr=10.0.0.1,10.0.0.2 port=1,2", 0, "host=a hostaddr=10.0.0.1 port=1"),
            ("host=a port=1", 0, "host=a port=1"),
        ] {
            let config: Config = format!("{all} {hosts}").parse().unwrap();
            let expected: Config = format!("{all} {one}").parse().unwrap();
            assert_eq!(of_host(&config, index), expected, "{hosts}");
        }
    }

    /// A frozen server: its kernel takes the connection.
    #[tokio::test]
    async fn a_host_that_never_answers_costs_its_time_and_no_more() {
        let frozen = TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let ports = format!("{},{gone}", frozen.local_addr().unwrap().port());
        let config: Config =
            format!("host=127.0.0.1,127.0.0.1 port={ports} user=u connect_timeout=60").parse().unwrap();
        let preferred = Preferred::default();
        let error =
            connect(&config, &NoTls, &preferred, Duration::from_millis(200)).await.map(|_| ()).unwrap_err();
        assert!(format!("{error:?}").contains("Connect"), "the last one refuses: {error:?}");
        // Both have failed: it is the first one's turn again.
        assert_eq!(preferred.order(2).collect::<Vec<_>>(), [0, 1]);
        let alone: Config =
            format!("host=127.0.0.1 port={} user=u", frozen.local_addr().unwrap().port()).parse().unwrap();
        let error =
            connect(&alone, &NoTls, &preferred, Duration::from_millis(200)).await.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("timeout"), "{error}");
    }

    /// A caller with a time-out of its own would begin at the frozen host for ever, and never come to the next one.
    #[tokio::test]
    async fn a_caller_that_stops_waiting_begins_with_the_next_host() {
        let (first, second) = (frozen().await, frozen().await);
        let ports = format!("{},{}", port(&first), port(&second));
        let config: Config = format!("host=127.0.0.1,127.0.0.1 port={ports} user=u").parse().unwrap();
        let (preferred, limit) = (Preferred::default(), Duration::from_secs(3600));
        for (frozen, next) in [(&first, [1, 0]), (&second, [0, 1])] {
            tokio::select! {
                answered = connect(&config, &NoTls, &preferred, limit) => panic!("{:?}", answered.map(|_| ())),
                asked = timeout(Duration::from_secs(30), frozen.accept()) => drop(asked.unwrap()),
            }
            assert_eq!(preferred.order(2).collect::<Vec<_>>(), next);
        }
    }

    /// Tried one after the other, the first of them would hold up the second.
    #[tokio::test]
    async fn a_frozen_host_does_not_hold_up_the_others() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (first, second) = (frozen().await, frozen().await);
        let ports = format!("{gone},{},{}", port(&first), port(&second));
        let config: Config =
            format!("host=127.0.0.1,127.0.0.1,127.0.0.1 port={ports} user=u").parse().unwrap();
        let (preferred, limit) = (Preferred::default(), Duration::from_secs(3600));
        let both_are_asked = async { tokio::join!(first.accept(), second.accept()) };
        tokio::select! {
            answered = connect(&config, &NoTls, &preferred, limit) => panic!("{:?}", answered.map(|_| ())),
            asked = timeout(Duration::from_secs(30), both_are_asked) => drop(asked.unwrap()),
        }
    }

    async fn frozen() -> tokio::net::TcpListener {
        tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    fn port(listener: &tokio::net::TcpListener) -> u16 {
        listener.local_addr().unwrap().port()
    }
}
