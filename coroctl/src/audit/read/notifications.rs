//! Reads whom the notifier notifies, and what it has notified: no address, and nothing of what it sent.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use jiff::Timestamp;
use tokio_postgres::GenericClient;
use uuid::Uuid;

use super::rows::{self, ParkedMessage};

/// The channel of e-mails.
pub const EMAIL: &str = "email";

/// A notification of a payment's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub channel: String,
    pub user_id: Uuid,
    /// The end that it is of.
    pub event: String,
    pub version: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Notifications {
    /// By payment.
    pub rows: HashMap<Uuid, Vec<Notification>>,
    /// Since when a user has an address.
    pub contacts: HashMap<Uuid, Timestamp>,
    /// Since when an endpoint is there, by its channel.
    pub endpoints: BTreeMap<String, Timestamp>,
    /// The messages that the notifier has parked.
    pub parked: Vec<ParkedMessage>,
}

pub async fn read(client: &impl GenericClient) -> Result<Notifications> {
    let mut read = Notifications { parked: rows::parked(client).await?, ..Notifications::default() };
    let contacts = "select user_id, since from contacts where since < 'infinity'";
    for row in client.query(contacts, &[]).await.context("contacts")? {
        read.contacts.insert(row.get(0), row.get(1));
    }
    let endpoints = "select channel, since from endpoints where removed_at is null";
    for row in client.query(endpoints, &[]).await.context("endpoints")? {
        read.endpoints.insert(row.get(0), row.get(1));
    }
    let notifications = "select payment_id, channel, user_id, event, version from notifications";
    let found = client.query_raw(notifications, std::iter::empty::<i32>()).await.context("notifications")?;
    let mut found = pin!(found);
    while let Some(row) = found.try_next().await.context("notifications")? {
        let version = row.get::<_, i32>(4).unsigned_abs();
        let notification =
            Notification { channel: row.get(1), user_id: row.get(2), event: row.get(3), version };
        read.rows.entry(row.get(0)).or_default().push(notification);
    }
    Ok(read)
}
