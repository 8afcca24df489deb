//! The settings of every session, which override those of role, database and server.
//!
//! * No time-out ends a statement that may take long, and no session is read only.
//! * The stream and a query print a value in the same text form.
//! * A name in our statements resolves to `pg_catalog`. Operators of key columns are found in any extension's schema.

/// The settings that every supported server knows. A session sets them while it signs in.
pub const AT_START: [(&str, &str); 16] = [
    ("client_encoding", "UTF8"),
    // `routes::json` relies on these text forms.
    ("DateStyle", "ISO, YMD"),
    ("TimeZone", "UTC"),
    ("IntervalStyle", "iso_8601"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("standard_conforming_strings", "on"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    // Row security that hides rows from the role is an error, not an empty table.
    ("row_security", "off"),
    // A missing standby delays no statement.
    ("synchronous_commit", "local"),
    // Catalog queries look expensive and are cheap; compiling one would take seconds.
    ("jit", "off"),
];

/// The settings that only some servers know, or that cannot be set while signing in.
const AFTERWARDS: [(&str, &str); 9] = [
    ("idle_session_timeout", "0"),
    ("transaction_timeout", "0"),
    // The relay sends its position every second, whatever it waits for; four seconds at most while the producer's queue is full. The
    // server ends the session of one that does not, because it is suspended or its machine is gone, and a standby takes over.
    ("wal_sender_timeout", "6s"),
    // The relay reads nothing while Kafka accepts nothing.
    ("tcp_user_timeout", "0"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    // PostgreSQL 16 has another name for it.
    ("debug_logical_replication_streaming", "buffered"),
    ("logical_replication_mode", "buffered"),
];

/// The value of the connection parameter `options`: the user's own, then ours.
pub fn options(own: Option<&str>) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    let ours = AT_START.iter().map(|(name, value)| format!("-c {name}={}", escaped(value)));
    own.map(str::to_owned).into_iter().chain(ours).collect::<Vec<_>>().join(" ")
}

/// The statement that sets the others, as far as the server knows them.
pub fn after_sign_in() -> String {
    let values: Vec<String> =
        AFTERWARDS.iter().map(|(name, value)| format!("('{name}', '{value}')")).collect();
    format!(
        "select pg_catalog.set_config(s.name, v.value, false) \
         from (values {}) v(name, value) join pg_catalog.pg_settings s on s.name = v.name where s.context = 'user' \
         union all select pg_catalog.set_config('search_path', ( \
            select pg_catalog.string_agg(pg_catalog.quote_ident(n.nspname), ', ' order by n.nspname <> 'pg_catalog', n.nspname) \
            from pg_catalog.pg_namespace n \
            where n.nspname = 'pg_catalog' or n.oid in (select o.opcnamespace from pg_catalog.pg_opclass o)), false)",
        values.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_come_last_and_with_their_spaces() {
        let all = options(Some("-c work_mem=1MB -c lock_timeout=3s"));
        assert!(all.starts_with("-c work_mem=1MB -c lock_timeout=3s -c client_encoding=UTF8 "), "{all}");
        assert!(
            all.contains("-c DateStyle=ISO,\\ YMD ") && all.ends_with("synchronous_commit=local -c jit=off"),
            "{all}"
        );
        assert!(options(None).starts_with("-c client_encoding=UTF8 "));
    }
}
