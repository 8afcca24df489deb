//! The rows of `services`, which every shard of payments has: a payment names one of its own shard.
//!
//! * A new shard gets those of the first other one in the list, with their versions: its relay emits them under the ids that they have, and
//!   nobody takes them for news. What it was born with besides stays.
//! * They are written while triggers are off, since an update would be a transition.

use anyhow::{Context, Result};
use tokio_postgres::types::Json;

use super::mover::Shard;
use super::moving::Owners;

const HAS_SERVICES: &str = "select to_regclass('services') is not null";
const READ: &str = "select coalesce(json_agg(s order by service_id), '[]') from services s";
const AS_THEY_ARE: &str = "set local session_replication_role = replica";
const WRITE: &str = "
    insert into services select * from json_populate_recordset(null::services, $1)
    on conflict (service_id) do update
       set (name, enabled, event, version) = (excluded.name, excluded.enabled, excluded.event, excluded.version)
     where services.version <= excluded.version";

/// Gives a new shard the services of another one. Databases of other services have none.
///
/// # Errors
/// When a shard does not answer, or the list has no other one.
pub async fn copy(owners: &Owners, new: &Shard) -> Result<()> {
    let has_services: bool = new.client.query_one(HAS_SERVICES, &[]).await?.try_get(0)?;
    if !has_services {
        return Ok(());
    }
    let other = owners.names().find(|name| **name != *new.name);
    let other = other.context("the list has no other shard to take them from")?;
    let other = owners.connect(other).await?;
    let services: Json<serde_json::Value> = other.client.query_one(READ, &[]).await?.try_get(0)?;
    let mut connection = owners.connect(&new.name).await?;
    let transaction = connection.client.transaction().await?;
    transaction.batch_execute(AS_THEY_ARE).await.context("only a superuser may write them as they are")?;
    let copied = transaction.execute(WRITE, &[&services]).await?;
    transaction.commit().await?;
    tracing::info!(from = %other.name, services = copied, "the new shard has the services of another one");
    Ok(())
}
