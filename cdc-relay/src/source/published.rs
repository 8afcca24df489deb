//! Asks a database for its tables, as far as patterns of the routes file are about them.

use crate::postgres::error::{PostgresError, Result};
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::routes::{DatabaseTables, Source};
use crate::source::inspect::text;

/// The statement, for whichever client; it answers one JSON value, a `DatabaseTables`.
pub fn statement(publication: &str) -> String {
    let named = |schema: &str, name: &str| format!("jsonb_build_object('schema', {schema}, 'name', {name})");
    let (published, existing) = (named("p.schemaname", "p.tablename"), named("n.nspname", "c.relname"));
    let publication = literal(publication);
    let tables = "from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                  where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema'";
    format!(
        "select jsonb_build_object( \
         'published', case when exists (select from pg_catalog.pg_publication where pubname = {publication}) \
             then (select coalesce(jsonb_agg({published} order by 1), '[]') \
                   from pg_catalog.pg_publication_tables p where p.pubname = {publication}) \
             else (select coalesce(jsonb_agg({existing} order by 1), '[]') {tables} \
                   and c.relpersistence = 'p' and not c.relispartition) end, \
         'existing', (select coalesce(jsonb_agg({existing} order by 1), '[]') {tables}), \
         'schemas', (select jsonb_agg(nspname order by 1) from pg_catalog.pg_namespace))"
    )
}

/// # Errors
/// When the server cannot answer.
pub fn ask(session: &mut Session, source: &Source) -> Result<DatabaseTables> {
    let rows = session.query(&statement(source.publication.get_ref()))?;
    let answer = rows.first().map(|row| text(row, 0)).unwrap_or_default();
    serde_json::from_str(answer)
        .map_err(|error| PostgresError::Protocol(format!("the tables of the database: {error}")))
}
