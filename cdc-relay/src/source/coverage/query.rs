//! Queries the coverage of a publication.

use anyhow::{Context, Result};

use super::Coverage;
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::routes::Source;
use crate::source::inspect::text;

/// The first version with published schemas, row filters and column lists.
const LISTS: u32 = 15;

/// The query that returns the coverage as JSON, in one row. `version`: the server's major version.
pub fn coverage_sql(version: u32, publication: &str) -> String {
    let (limits, schemas) = if version >= LISTS {
        (
            "'columns', r.prattrs::int2[], 'filter', pg_catalog.pg_get_expr(r.prqual, r.prrelid)",
            "union all \
             select jsonb_build_object('oid', s.oid::int8, 'of', 'schema ' || n.nspname, 'made', s.xmin::text) \
             from pg_catalog.pg_publication_namespace s join pg_catalog.pg_namespace n on n.oid = s.pnnspid \
             where s.pnpubid = p.oid and s.pnnspid in ( \
                select a.relnamespace from pg_catalog.pg_class a where a.oid = any(lineage.oids))",
        )
    } else {
        ("'columns', null", "")
    };
    include_str!("query.sql")
        .replace("{limits}", limits)
        .replace("{schemas}", schemas)
        .replace("{publication}", &literal(publication))
}

/// The query that returns, by key, the command that replaced or removed a row of the publication which the session's
/// snapshot still sees.
pub fn replaced_sql(publication: &str) -> String {
    let publication = literal(publication);
    format!(
        "select 'publication ' || p.oid, p.xmax, p.cmax from pg_catalog.pg_publication p \
         where p.pubname = {publication} and p.xmax::text <> '0' \
         union all \
         select 'member ' || r.oid, r.xmax, r.cmax from pg_catalog.pg_publication_rel r \
         join pg_catalog.pg_publication p on p.oid = r.prpubid \
         where p.pubname = {publication} and r.xmax::text <> '0'"
    )
}

/// The query that returns a digest of the catalog's rows for the publication and these tables: their number, and the sum of
/// the transactions that wrote them. A later transaction replaces a row, so equal sums of equally many rows mean that
/// none was replaced.
pub fn digest_sql(version: u32, publication: &str, tables: &[u32]) -> String {
    let tables: Vec<String> = tables.iter().map(u32::to_string).collect();
    let mine = format!("= any('{{{}}}'::oid[])", tables.join(","));
    let publication =
        format!("(select p.oid from pg_catalog.pg_publication p where p.pubname = {})", literal(publication));
    let sum = |catalog: &str, condition: &str| {
        format!(
            "(select concat(count(*), '-', sum(xmin::text::int8)) from pg_catalog.{catalog} where {condition})"
        )
    };
    let mut parts = vec![
        sum("pg_publication", &format!("oid = {publication}")),
        sum("pg_publication_rel", &format!("prpubid = {publication}")),
        sum("pg_inherits", "true"),
        sum("pg_class", &format!("oid {mine}")),
        sum("pg_attribute", &format!("attrelid {mine} and attnum > 0")),
        sum("pg_index", &format!("indrelid {mine}")),
    ];
    if version >= LISTS {
        parts.push(sum("pg_publication_namespace", &format!("pnpubid = {publication}")));
    }
    format!("select concat_ws('/', {})", parts.join(", "))
}

/// Parses the answer, and keeps the routed tables.
pub fn read(answer: &str, source: &Source) -> Result<Coverage> {
    let coverage: Coverage =
        serde_json::from_str(answer).context("the server's answer about the publication is not readable")?;
    Ok(coverage.of(source))
}

/// Returns the coverage in the session's snapshot.
pub fn coverage(session: &mut Session, source: &Source) -> Result<Coverage> {
    let rows = session.query(&coverage_sql(session.version(), source.publication.get_ref()))?;
    read(rows.first().map(|row| text(row, 0)).unwrap_or_default(), source)
}
