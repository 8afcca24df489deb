//! A second database of each service: of payments and of the processor the first one owns the even buckets, of balance the odd ones.

use std::collections::BTreeMap;

use saga::shards::bucket::Bucket;
use sql::Database;
use sql::harness::Harness;
use tokio_postgres::Client;
use uuid::Uuid;

pub const SERVICES: [&str; 3] = ["payments", "balance", "processor"];

/// The tables that are moved, by service.
const TABLES: [&[&str]; 3] = [&["payments"], &["accounts", "ledger"], &["charges"]];

pub struct SecondShards {
    pub databases: [Harness; 3],
    pub clients: [Client; 3],
    /// By the name of the slot: service and shard.
    slots: BTreeMap<String, (usize, usize)>,
    /// Slots of relays that stand still.
    pub standing: Vec<String>,
    /// The buckets that were moved from where they were at first, by service: epoch and shard.
    moved: BTreeMap<(usize, Bucket), (i64, usize)>,
}

fn first_shard(service: usize, bucket: Bucket) -> usize {
    (bucket.index() + usize::from(service == 1)) % 2
}

/// A user whom this shard of payments owns.
pub fn user_on(shard: usize) -> Uuid {
    std::iter::repeat_with(Uuid::now_v7).find(|user| first_shard(0, Bucket::of(*user)) == shard).unwrap()
}

impl SecondShards {
    pub async fn new(first: &[Harness; 3], first_clients: &[Client; 3]) -> Self {
        let (mut databases, mut clients, mut slots) = (Vec::new(), Vec::new(), BTreeMap::new());
        let kinds = [Database::Payments, Database::Balance, Database::Processor];
        for (service, kind) in kinds.into_iter().enumerate() {
            let database = Harness::new(kind).await.unwrap();
            let (server, _) = database.admin_url().rsplit_once('/').unwrap();
            let client = sql::connect(&format!("{server}/{}", database.name())).await.unwrap();
            let both = [(&first[service], &first_clients[service]), (&database, &client)];
            for (shard, (database, client)) in both.into_iter().enumerate() {
                let give_up = "
                    select change_ownership(array_agg(bucket), array_agg(epoch), array_agg(epoch + 1), false, null)
                      from owned_buckets where (bucket + $1::int4) % 2 <> $2::int4";
                let numbers = [i32::from(service == 1), i32::try_from(shard).unwrap()];
                client.execute(give_up, &[&numbers[0], &numbers[1]]).await.unwrap();
                let slot = format!("{}_relay", database.name());
                let make = "select from pg_create_logical_replication_slot($1::text::name, 'pgoutput')";
                client.execute(make, &[&slot]).await.unwrap();
                slots.insert(slot, (service, shard));
            }
            databases.push(database);
            clients.push(client);
        }
        Self {
            databases: databases.try_into().ok().unwrap(),
            clients: clients.try_into().ok().unwrap(),
            slots,
            standing: Vec::new(),
            moved: BTreeMap::new(),
        }
    }

    pub fn shard(&self, service: usize, user: Uuid) -> usize {
        let bucket = Bucket::of(user);
        self.moved.get(&(service, bucket)).map_or_else(|| first_shard(service, bucket), |(_, shard)| *shard)
    }

    /// The name of a shard's slot.
    pub fn slot(&self, service: usize, shard: usize) -> &str {
        let (name, _) = self.slots.iter().find(|(_, of)| **of == (service, shard)).unwrap();
        name
    }

    /// All that is committed has been emitted, but by relays that stand still.
    pub async fn confirm(&self, first: &[Client; 3]) {
        let advance = "select from pg_replication_slot_advance($1::text::name, pg_current_wal_flush_lsn())";
        for (slot, (service, shard)) in self.slots.iter().filter(|(slot, _)| !self.standing.contains(slot)) {
            let client = if *shard == 0 { &first[*service] } else { &self.clients[*service] };
            client.execute(advance, &[slot]).await.unwrap();
        }
    }

    /// Has a user's bucket given up. Nobody owns it.
    pub async fn fence(&mut self, first: &[Client; 3], service: usize, user: Uuid) {
        let (from, bucket) = (self.shard(service, user), Bucket::of(user));
        let epoch = self.moved.get(&(service, bucket)).map_or(2, |(epoch, _)| epoch + 1);
        self.change(first, (service, from), bucket, (epoch, false)).await;
        self.moved.insert((service, bucket), (epoch, from));
    }

    /// Copies the rows of the bucket and grants it to the other shard. The rows stay where they were.
    pub async fn grant(&mut self, first: &[Client; 3], service: usize, user: Uuid) {
        let bucket = Bucket::of(user);
        let (epoch, from) = self.moved[&(service, bucket)];
        let (source, target) = match from {
            0 => (&first[service], &self.clients[service]),
            _ => (&self.clients[service], &first[service]),
        };
        for table in TABLES[service] {
            let rows = format!("select to_jsonb(r)::text from {table} r where bucket(user_id) = $1");
            let delete = format!("delete from {table} where bucket(user_id) = $1");
            let insert = format!(
                "insert into {table} select * from jsonb_populate_record(null::{table}, $1::text::jsonb)"
            );
            target.execute(&delete, &[&bucket.number()]).await.unwrap();
            for row in source.query(&rows, &[&bucket.number()]).await.unwrap() {
                target.execute(&insert, &[&row.get::<_, String>(0)]).await.unwrap();
            }
        }
        let to = 1 - from;
        self.change(first, (service, to), bucket, (epoch + 1, true)).await;
        self.moved.insert((service, bucket), (epoch + 1, to));
    }

    async fn change(
        &self,
        first: &[Client; 3],
        (service, shard): (usize, usize),
        bucket: Bucket,
        (epoch, owned): (i64, bool),
    ) {
        let client = if shard == 0 { &first[service] } else { &self.clients[service] };
        let change = "
            select change_ownership(array[bucket], array[epoch], array[$2::int8], $3, 'other')
              from owned_buckets where bucket = $1";
        client.execute(change, &[&bucket.number(), &epoch, &owned]).await.unwrap();
    }

    pub async fn finish(self, first: &[Client; 3]) {
        for (slot, (service, shard)) in &self.slots {
            let client = if *shard == 0 { &first[*service] } else { &self.clients[*service] };
            client.execute("select pg_drop_replication_slot($1::text::name)", &[slot]).await.unwrap();
        }
        drop(self.clients);
        for database in self.databases {
            database.finish().await.unwrap();
        }
    }
}
