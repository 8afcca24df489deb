//! Watches the host of a pool, where its URL names several, and finds the one that takes its place.
//!
//! * While connections are open, the host is asked every [`PROBE_INTERVAL`], on a connection of its own. If it does not answer, the hosts
//!   are tried, every [`SEARCH_INTERVAL`], and `leader` leaves it once another takes writes. A host that is slow while no other takes writes
//!   keeps its connections.
//! * A host may answer, and be a primary that its standbys have left for another one. Its commits then wait for ever: `statement_timeout`
//!   does not count while one waits for standbys. So where a commit of anybody has waited for seconds ([`PROBE`]) each of the others is
//!   looked at, every [`LOOK_INTERVAL`], and the host is left for one that takes writes on a later timeline.
//! * Whose role may not see what others wait for (`pg_read_all_stats`) goes by the commits of its own.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use postgres_tls::hosts::Opened;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::tls::TlsStream;
use tokio_postgres::{Client, Error, SimpleQueryMessage};

use super::leader::{Former, Timeline};
use super::login::Inner;

const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// While no host takes writes. One of them is about to: nothing is accepted until it is found.
const SEARCH_INTERVAL: Duration = Duration::from_millis(250);
/// While commits wait for standbys. It may last for hours, and each look signs in.
const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// A host that takes longer is taken for frozen, and the others are tried.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A row where a commit waits for its standbys whose statement began so long ago that they may have left the host.
const PROBE: &str = "
    select from pg_stat_activity
     where datname = current_database() and wait_event = 'SyncRep' and clock_timestamp() - query_start > '3 s'
     limit 1";
/// Its first eight digits are the timeline, in hexadecimal.
const WAL_FILE: &str = "select pg_walfile_name(pg_current_wal_insert_lsn())";

/// A connection that only looks. It ends when dropped, also where its host answers no more.
struct Probe {
    client: Client,
    host: usize,
    timeline: Timeline,
    driver: AbortHandle,
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Probe {
    /// `None` if the host answers no more, or is no primary any more.
    async fn of<S>(opened: Opened<S>) -> Option<Self>
    where
        S: TlsStream + Unpin + Send + 'static,
    {
        let Opened { client, connection, host } = opened;
        // It commits nothing, so its end leaves nothing in doubt.
        let driver = tokio::spawn(async move { drop(connection.await) }).abort_handle();
        let mut probe = Self { client, host, timeline: 0, driver };
        probe.timeline = timeout(PROBE_TIMEOUT, timeline(&probe.client)).await.ok()?.ok()?;
        Some(probe)
    }

    async fn state(&self) -> State {
        let Ok(Ok(answer)) = timeout(PROBE_TIMEOUT, self.client.simple_query(PROBE)).await else {
            return State::DoesNotAnswer;
        };
        match answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(_))) {
            true => State::WaitsForStandbys,
            false => State::TakesWrites,
        }
    }
}

/// What a host is like.
enum State {
    TakesWrites,
    /// It answers, and commits do not end.
    WaitsForStandbys,
    DoesNotAnswer,
}

/// Watches until the pool is gone, or has no connection.
pub fn begin(login: &Arc<Inner>) {
    tokio::spawn(watch(Arc::downgrade(login)));
}

async fn watch(login: Weak<Inner>) {
    let mut probe: Option<Probe> = None;
    let mut looked_at: Option<Instant> = None;
    loop {
        sleep(if probe.is_some() { PROBE_INTERVAL } else { SEARCH_INTERVAL }).await;
        let Some(login) = login.upgrade() else { return };
        if login.leader.ends() {
            return;
        }
        // Connections of the pool may have found another host meanwhile.
        let asked = probe.take().filter(|probe| login.leader.is(probe.host, probe.timeline));
        let state = match &asked {
            Some(probe) => probe.state().await,
            None => State::DoesNotAnswer,
        };
        probe = match (state, asked) {
            (State::WaitsForStandbys, Some(probe)) => {
                if looked_at.is_some_and(|at| at.elapsed() < LOOK_INTERVAL) {
                    Some(probe)
                } else {
                    looked_at = Some(Instant::now());
                    promoted_after(&login, &probe).await.or(Some(probe))
                }
            }
            (State::TakesWrites, Some(probe)) => Some(probe),
            (_, frozen) => {
                drop(frozen);
                search(&login).await
            }
        };
    }
}

/// A host that takes writes. One that does not answer is no error of ours: callers say so.
async fn search(login: &Inner) -> Option<Probe> {
    let probe = Probe::of(login.connect().await.ok()?).await?;
    match login.leader.found(probe.host, probe.timeline) {
        Ok(()) => Some(probe),
        Err(Former { leader }) => {
            login.prefer(leader);
            None
        }
    }
}

/// Another host that takes writes, on a later timeline.
async fn promoted_after(login: &Inner, before: &Probe) -> Option<Probe> {
    let others = (0..login.hosts()).filter(|host| *host != before.host);
    let mut others: FuturesUnordered<_> =
        others.map(|host| async move { Probe::of(login.connect_to(host).await.ok()?).await }).collect();
    while let Some(probe) = others.next().await {
        let later = probe.filter(|probe| probe.timeline > before.timeline);
        if let Some(probe) = later {
            // Connections that are opened from now on go there too.
            login.prefer(probe.host);
            return login.leader.found(probe.host, probe.timeline).ok().map(|()| probe);
        }
    }
    None
}

/// The timeline that a host writes.
///
/// # Errors
/// When it does not answer, or is a standby.
pub async fn timeline(client: &Client) -> Result<Timeline, Error> {
    let answer = client.simple_query(WAL_FILE).await?;
    let file = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    Ok(file.and_then(timeline_of).unwrap_or_default())
}

fn timeline_of(file: &str) -> Option<Timeline> {
    Timeline::from_str_radix(file.get(..8)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_file_of_the_wal_begins_with_its_timeline() {
        assert_eq!(timeline_of("000000010000000000000003"), Some(1));
        assert_eq!(timeline_of("0000001A0000000000000003"), Some(26));
        assert_eq!(timeline_of("0001"), None);
    }
}
