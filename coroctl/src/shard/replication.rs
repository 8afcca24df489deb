//! Writes the SQL by which Postgres' own logical replication copies the rows of a move.
//!
//! * The publication is filtered by the bucket of `user_id`, by built-in functions only: a filter may call no function of ours.
//! * It publishes inserts and updates. So the removal at the source is never replicated, whatever is still subscribed.
//! * The slot is made by itself, and the subscription without one: so the subscription is made in the transaction that locks the
//!   move's record ([`Step::locks_open_record`](super::moves::Step::locks_open_record)).
//! * The subscription commits as the target's sessions do. Otherwise the source's slot could be confirmed for rows that the
//!   target loses when it crashes.
//! * Publication, slot and subscription are named after the move, so what belongs to no open move can be found and dropped.

use anyhow::{Result, ensure};
use postgres_protocol::escape::{escape_identifier, escape_literal};
use saga::shards::bucket::Bucket;
use uuid::Uuid;

/// The beginning of the names of everything that a move makes.
pub const PREFIX: &str = "coro_move_";

/// The bucket of `user_id`, as the function `bucket (user_id)` of the databases computes it.
pub const BUCKET: &str =
    "((get_byte(sha256(uuid_send(user_id)), 0) << 2) | (get_byte(sha256(uuid_send(user_id)), 1) >> 6))";

/// The tables of a database that have a `user_id` and are no view, in order.
pub const TABLES: &str = "
    select c.relname::text
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
      join pg_attribute a on a.attrelid = c.oid and a.attname = 'user_id' and not a.attisdropped
     where n.nspname = 'public' and c.relkind in ('r', 'p') and c.relpersistence = 'p'
     order by 1";

/// Of these tables, those whose replica identity has no `user_id`.
pub const WITHOUT_IDENTITY: &str = "
    select c.relname::text
      from pg_class c
      join pg_namespace n on n.oid = c.relnamespace
     where n.nspname = 'public' and c.relname = any ($1::text[]) and c.relreplident <> 'f'
       and not exists (
           select from pg_index i
             join pg_attribute a on a.attrelid = c.oid and a.attname = 'user_id'
            where i.indrelid = c.oid
              and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident else false end
              -- Included columns follow the key.
              and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
     order by 1";

/// Tables that are none of these and refer to one of them.
pub const REFERRING: &str = "
    select distinct r.relname::text
      from pg_constraint k
      join pg_class r on r.oid = k.conrelid
      join pg_class c on c.oid = k.confrelid
      join pg_namespace n on n.oid = c.relnamespace
     where k.contype = 'f' and n.nspname = 'public' and c.relname = any ($1::text[]) and r.relname <> all ($1::text[])
     order by 1";

/// The transactions of services that run now: virtual xid and process.
pub const RUNNING: &str = "
    select l.virtualtransaction, l.pid
      from pg_locks l
      join pg_stat_activity a using (pid)
     where l.locktype = 'virtualxid' and l.granted and a.datname = current_database() and a.usename like '%\\_svc'";

/// How many of these transactions still run. Parameters: their virtual xids.
pub const STILL_RUNNING: &str = "
    select count(*) from pg_locks
     where locktype = 'virtualxid' and granted and virtualtransaction = any ($1::text[])";

/// Ends the sessions whose transactions of the list still run. Parameters: virtual xids and processes.
///
/// A commit that waits for its standby stays in the WAL. Its client learns nothing, and the LSN comes after it.
pub const END: &str = "
    select count(pg_terminate_backend(l.pid))
      from unnest($1::text[], $2::int[]) as listed (virtualtransaction, pid)
      join pg_locks l using (virtualtransaction, pid)
     where l.locktype = 'virtualxid' and l.granted";

/// Answers with the LSN that target and relay have to reach: that of a message, which comes after all that has ended before. It makes the
/// WAL end in something that both are sent, and its prefix has our relay confirm its transaction at once. Parameters: the move's name.
pub const MARK: &str = "select pg_logical_emit_message(true, 'cdc-relay.confirm', $1)::text";

/// The logical slots of the relay, and of whoever else reads this database, in order. Those by which a subscription copies a table are
/// gone soon, and another move's wait for nobody. Parameters: [`PREFIX`].
pub const RELAY_SLOTS: &str = "
    select slot_name::text from pg_replication_slots
     where database = current_database() and slot_type = 'logical' and not temporary
       and not starts_with(slot_name::text, $1) and slot_name::text !~ '^pg_[0-9]+_sync_[0-9]+_[0-9]+$'
     order by 1";

/// Whether every slot of the list is confirmed up to the LSN; a slot that is missing is not, and a list without slots is not. Parameters:
/// LSN, names.
pub const CONFIRMED: &str = "
    select cardinality($2::text[]) > 0 and count(*) = cardinality($2::text[])
      from pg_replication_slots
     where slot_name = any ($2::text[]) and confirmed_flush_lsn >= $1::text::pg_lsn";

/// The name of everything that a move makes: a slot's name has no other characters.
pub fn name(move_id: Uuid) -> String {
    format!("{PREFIX}{}", move_id.simple())
}

/// The condition that a row is of one of the buckets.
///
/// # Errors
/// When there is no bucket: such a filter would be a mistake.
pub fn filter(buckets: &[Bucket]) -> Result<String> {
    ensure!(!buckets.is_empty(), "a move without buckets");
    let mut numbers: Vec<i16> = buckets.iter().map(|bucket| bucket.number()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let numbers: Vec<String> = numbers.iter().map(i16::to_string).collect();
    Ok(format!("{BUCKET} in ({})", numbers.join(", ")))
}

/// Makes the publication at the source. The replica identities were checked before.
///
/// # Errors
/// When there is no bucket or no table.
pub fn create_publication(move_id: Uuid, tables: &[String], buckets: &[Bucket]) -> Result<String> {
    ensure!(!tables.is_empty(), "a move without tables");
    let filter = filter(buckets)?;
    let tables: Vec<String> =
        tables.iter().map(|table| format!("{} where ({filter})", escape_identifier(table))).collect();
    Ok(format!(
        "create publication {} for table {} with (publish = 'insert, update')",
        name(move_id),
        tables.join(", ")
    ))
}

pub fn drop_publication(move_id: Uuid) -> String {
    format!("drop publication if exists {}", name(move_id))
}

/// Makes the slot at the source unless it is there, while the move's record is open. The record cannot be locked: a transaction that
/// has written makes no slot.
pub fn create_slot(move_id: Uuid) -> String {
    let name = name(move_id);
    format!(
        "select pg_create_logical_replication_slot('{name}', 'pgoutput')
  where not exists (select from pg_replication_slots where slot_name = '{name}')"
    )
}

/// Drops the slot at the source if it is there.
pub fn drop_slot(move_id: Uuid) -> String {
    let name = name(move_id);
    format!("select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{name}'")
}

/// Makes the subscription at the target, which begins to copy. `source`: how the target's server connects to the source, with a
/// role that may replicate and read.
pub fn create_subscription(move_id: Uuid, source: &str) -> String {
    let name = name(move_id);
    format!(
        "create subscription {name} connection {} publication {name}
    with (create_slot = false, slot_name = '{name}', copy_data = true, synchronous_commit = 'on')",
        // A text with a backslash begins with a space and an E.
        escape_literal(source).trim_start()
    )
}

/// Drops the subscription at the target without its slot, in the order that a transaction permits.
pub fn drop_subscription(move_id: Uuid) -> [String; 3] {
    let name = name(move_id);
    [
        format!("alter subscription {name} disable"),
        format!("alter subscription {name} set (slot_name = none)"),
        format!("drop subscription if exists {name}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVE: Uuid = Uuid::from_u128(0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF);
    const NAME: &str = "coro_move_0123456789abcdef0123456789abcdef";

    fn buckets(numbers: &[i16]) -> Vec<Bucket> {
        numbers.iter().filter_map(|number| Bucket::new(*number)).collect()
    }

    #[test]
    fn the_filter_names_each_bucket_once() {
        assert_eq!(filter(&buckets(&[7, 1023, 7, 0])).unwrap(), format!("{BUCKET} in (0, 7, 1023)"));
        assert!(filter(&[]).is_err());
    }

    /// What the databases compute, a filter computes.
    #[test]
    fn the_filter_has_the_expression_of_the_databases() {
        for migration in [
            include_str!("../../../sql/payments/V7__buckets.sql"),
            include_str!("../../../sql/balance/V9__buckets.sql"),
            include_str!("../../../sql/processor/V6__buckets.sql"),
        ] {
            assert!(migration.contains(&format!("select {BUCKET}::smallint")));
        }
    }

    #[test]
    fn a_publication_filters_each_table_and_publishes_no_deletes() {
        let tables = ["accounts".to_owned(), "a\"b".to_owned()];
        let text = create_publication(MOVE, &tables, &buckets(&[5])).unwrap();
        assert_eq!(
            text,
            format!(
                "create publication {NAME} for table \"accounts\" where ({BUCKET} in (5)), \
                 \"a\"\"b\" where ({BUCKET} in (5)) with (publish = 'insert, update')"
            )
        );
        assert!(create_publication(MOVE, &[], &buckets(&[5])).is_err());
    }

    #[test]
    fn names_fit_and_are_a_slots() {
        assert_eq!(name(MOVE), NAME);
        assert!(NAME.len() < 64 && NAME.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
    }

    #[test]
    fn a_connection_string_is_a_literal() {
        let text = create_subscription(MOVE, "host=a password='it''s'");
        assert!(text.contains("connection 'host=a password=''it''''s''' publication"), "{text}");
        let text = create_subscription(MOVE, r"password=a\b");
        assert!(text.contains(r"connection E'password=a\\b' publication"), "{text}");
    }

    #[test]
    fn a_subscription_leaves_the_slot_to_others() {
        assert!(create_subscription(MOVE, "host=a").contains("create_slot = false"));
        let [_, forget, drop] = drop_subscription(MOVE);
        assert_eq!(forget, format!("alter subscription {NAME} set (slot_name = none)"));
        assert_eq!(drop, format!("drop subscription if exists {NAME}"));
    }
}
