//! Queries the tables of a database that the patterns of the routes file select from.

use crate::postgres::error::{PostgresError, Result};
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::routes::{DatabaseTables, Source};
use crate::source::inspect::text;

/// The query, which returns a `DatabaseTables` as one JSON value.
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

/// Runs the query.
///
/// # Errors
/// The server does not answer, or its answer is not readable.
pub fn ask(session: &mut Session, source: &Source) -> Result<DatabaseTables> {
    let rows = session.query(&statement(source.publication.get_ref()))?;
    let answer = rows.first().map(|row| text(row, 0)).unwrap_or_default();
    serde_json::from_str(answer).map_err(|error| {
        PostgresError::Protocol(format!(
            "the list of tables that the server returned is not readable: {error}"
        ))
    })
}
