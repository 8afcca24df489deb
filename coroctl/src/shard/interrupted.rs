//! `coroctl shard moves`, `resume` and `abort`: the moves that have not ended.
//!
//! * No move goes on while one of its shards is closed: a restored database may have lost what the other one knows.
//! * Everything that a move needs is in its records.

use anyhow::{Result, bail, ensure};
use clap::Args;
use uuid::Uuid;

use super::connections::ranges;
use super::mover::record::{self, Recorded};
use super::mover::{RelayListener, Shard, conditions_read};
use super::moves::{Record, Side};
use super::moving::{self, Owners};

#[derive(Args)]
pub struct Open {
    /// The id of the move; `coroctl shard moves` prints it.
    move_id: Uuid,
    #[command(flatten)]
    relay: RelayListener,
    #[command(flatten)]
    owners: Owners,
}

#[derive(Args)]
pub struct Listing {
    #[command(flatten)]
    owners: Owners,
}

/// # Errors
/// When no shard has an open record of the move, one does not answer or is closed, or the move has to be resumed again.
pub async fn resume(open: &Open) -> Result<()> {
    let (source, target, recorded) = both(open).await?;
    go_on(open, source, target, recorded).await
}

/// Asks for the rollback, and carries it out.
///
/// # Errors
/// As [`resume`]; and when the source has no open record of the move.
pub async fn abort(open: &Open) -> Result<()> {
    let (source, target, recorded) = both(open).await?;
    let asked = record::request_abort(&source.client, open.move_id).await?;
    ensure!(asked, "the source has no open record of the move; `resume` ends it");
    go_on(open, source, target, recorded).await
}

async fn go_on(open: &Open, source: Shard, target: Shard, recorded: Recorded) -> Result<()> {
    let known = record::read(&source.client, recorded.move_id).await?.unwrap_or(recorded);
    Box::pin(moving::finish(source, target, known.described(), open.relay.clone())).await
}

/// Source and target, and an open record.
async fn both(open: &Open) -> Result<(Shard, Shard, Recorded)> {
    let (shard, recorded) = find(open).await?;
    let peer = open.owners.connect(&recorded.peer).await?;
    for shard in [&shard, &peer] {
        ensure!(
            conditions_read::is_open(&shard.client).await?,
            "shard {} is closed: it was restored, promoted or closed by hand, and may lack what the other shard of the move has. Nothing was \
             changed. Run `coroctl shard adopt {}` and `recover` first (docs/runbooks/restore.md)",
            shard.name,
            shard.name
        );
    }
    Ok(match recorded.side {
        Side::Source => (shard, peer, recorded),
        Side::Target => (peer, shard, recorded),
    })
}

/// Prints the open moves of every shard.
///
/// # Errors
/// When a shard does not answer.
pub async fn list_moves(listing: &Listing) -> Result<()> {
    let mut rows = Vec::new();
    for name in listing.owners.names() {
        let shard = listing.owners.connect(name).await?;
        for recorded in record::open(&shard.client).await? {
            let (from, to) = match recorded.side {
                Side::Source => (&shard.name, &recorded.peer),
                Side::Target => (&recorded.peer, &shard.name),
            };
            let state = match (recorded.grant_recorded, recorded.abort_requested) {
                (true, true | false) => "granted",
                (false, true) => "abort",
                (false, false) => "",
            };
            rows.push([
                recorded.move_id.to_string(),
                from.clone(),
                to.clone(),
                ranges(&recorded.buckets),
                recorded.operator.clone(),
                state.to_owned(),
            ]);
        }
    }
    let rows = merged(rows);
    if rows.is_empty() {
        saga::say!("No move is open.");
    } else {
        saga::say!("{}", crate::listing::table(["move", "from", "to", "buckets", "operator", ""], rows));
    }
    Ok(())
}

/// A move once, though both of its shards have it. The source's record alone has a state.
fn merged(mut rows: Vec<[String; 6]>) -> Vec<[String; 6]> {
    rows.sort_by(|a, b| (&a[0], &b[5]).cmp(&(&b[0], &a[5])));
    rows.dedup_by(|later, first| later[0] == first[0]);
    rows
}

/// A shard with an open record of the move. The others need not answer.
async fn find(open: &Open) -> Result<(Shard, Recorded)> {
    let mut away = Vec::new();
    for name in open.owners.names() {
        let found = async {
            let shard = open.owners.connect(name).await?;
            let recorded = record::read(&shard.client, open.move_id).await?;
            anyhow::Ok((shard, recorded))
        };
        match found.await {
            Ok((shard, Some(recorded))) if recorded.record == Record::Open => return Ok((shard, recorded)),
            Ok(_) => {}
            Err(error) => away.push(format!("{name}: {error:#}")),
        }
    }
    match away.is_empty() {
        true => bail!("no shard has an open record of move {}", open.move_id),
        false => {
            bail!("no shard that answers has an open record of move {}. {}", open.move_id, away.join("; "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_is_listed_once_with_its_state() {
        let row = |id: &str, state: &str| [id, "one", "two", "7", "ada", state].map(str::to_owned);
        let rows = vec![row("b", ""), row("a", ""), row("a", "abort"), row("b", "granted")];
        assert_eq!(merged(rows), [row("a", "abort"), row("b", "granted")]);
    }
}
