//! What every session with a watched database is set to, whatever its role, its database or its server say otherwise.
//!
//! * Nothing that waits as long as it takes is ended by a time-out of somebody's, and nothing is made read only.
//! * A value has one text, whoever reads it: the stream and a query print the same.
//! * A name means what it says: ours are in `pg_catalog`, and operators of key columns are found wherever their
//!   extension is.

/// Known to every server that is read, and set while the session signs in.
pub const AT_START: [(&str, &str); 16] = [
    ("client_encoding", "UTF8"),
    // The text forms that `json` writes onward almost unchanged.
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
    // A table whose rows are hidden from the role is an error, not an empty table.
    ("row_security", "off"),
    // A standby that is away holds up nobody.
    ("synchronous_commit", "local"),
    // Questions to the catalog look dear and are cheap: compiling them takes seconds.
    ("jit", "off"),
];

/// Known to some servers only, or not to be set while signing in.
const AFTERWARDS: [(&str, &str); 9] = [
    ("idle_session_timeout", "0"),
    ("transaction_timeout", "0"),
    // The relay says where it is every second.
    ("wal_sender_timeout", "60s"),
    // It may read nothing for as long as Kafka takes nothing.
    ("tcp_user_timeout", "0"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    ("array_nulls", "on"),
    // Called otherwise by 16.
    ("debug_logical_replication_streaming", "buffered"),
    ("logical_replication_mode", "buffered"),
];

/// As the option `options` of a connection has them, after those of the user's own.
pub fn options(own: Option<&str>) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    let ours = AT_START.iter().map(|(name, value)| format!("-c {name}={}", escaped(value)));
    own.map(str::to_owned).into_iter().chain(ours).collect::<Vec<_>>().join(" ")
}

/// The statement that sets the rest, as far as the server knows it.
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
