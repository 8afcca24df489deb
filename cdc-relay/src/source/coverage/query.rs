//! Asks the server what a publication sends.

use anyhow::{Context, Result};

use super::Coverage;
use crate::postgres::session::Session;
use crate::postgres::sql::literal;
use crate::routes::Source;
use crate::source::inspect::text;

/// The schemas of a publication are listed from here on, and a table's filter and columns.
const LISTS: u32 = 15;

/// The statement that answers the coverage as JSON, in one row. `version`: the server's major version.
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

/// The statement that answers, by key, which command of which transaction took away or replaced what the session's snapshot still sees
/// of the publication.
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

/// The statement that answers in one word whether to look again: what its rows in the catalog are and which transactions
/// made them, of the publication and of these tables. A row that is replaced is replaced by a later transaction, so that
/// the sums of as many rows are equal only if none was.
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

/// The coverage in an answer, as far as it concerns the source.
pub fn read(answer: &str, source: &Source) -> Result<Coverage> {
    let coverage: Coverage =
        serde_json::from_str(answer).context("what the server says of the publication")?;
    Ok(coverage.of(source))
}

/// As the session sees it now.
pub fn coverage(session: &mut Session, source: &Source) -> Result<Coverage> {
    let rows = session.query(&coverage_sql(session.version(), source.publication.get_ref()))?;
    read(rows.first().map(|row| text(row, 0)).unwrap_or_default(), source)
}
