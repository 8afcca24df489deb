//! Looks at the database before streaming: which cluster it is, how the slot stands, and whether the publication
//! and the routes fit each other.

use crate::catalog::Catalog;
use crate::lsn::Lsn;
use crate::pgoutput::{Column, Relation};
use crate::route::Plan;
use crate::routes::{Deletes, Routes, Source};
use crate::sql::{self, identifier, literal};
use crate::state::{Cluster, Refusal, Slot};
use crate::wire::{Row, Session, WireError};

pub fn text(row: &Row, index: usize) -> &str {
    row.get(index).and_then(Option::as_deref).unwrap_or_default()
}

/// The cluster, and the name of the session's database.
pub fn cluster(session: &mut Session) -> Result<(Cluster, String), WireError> {
    let rows = session.query("IDENTIFY_SYSTEM")?;
    let row =
        rows.first().ok_or_else(|| WireError::Protocol("IDENTIFY_SYSTEM answered nothing".to_owned()))?;
    let cluster = Cluster {
        system_id: text(row, 0).to_owned(),
        timeline: text(row, 1).parse().unwrap_or_default(),
        flush: text(row, 2).parse().unwrap_or_default(),
    };
    Ok((cluster, text(row, 3).to_owned()))
}

/// Whether the server is in recovery, as a standby is until it is promoted.
pub fn standby(session: &mut Session) -> Result<bool, WireError> {
    let rows = session.query("select pg_catalog.pg_is_in_recovery()")?;
    Ok(rows.first().is_some_and(|row| text(row, 0) == "t"))
}

/// The history file of a timeline; empty for the first, which has none.
pub fn history(session: &mut Session, timeline: u32) -> Result<String, WireError> {
    if timeline <= 1 {
        return Ok(String::new());
    }
    let rows = session.query(&format!("TIMELINE_HISTORY {timeline}"))?;
    Ok(rows.first().map(|row| text(row, 1).to_owned()).unwrap_or_default())
}

pub fn slot(session: &mut Session, name: &str) -> Result<Option<Slot>, WireError> {
    let rows = session.query(&format!(
        "select plugin, database, coalesce(wal_status, 'lost'), confirmed_flush_lsn, active_pid \
         from pg_catalog.pg_replication_slots where slot_name = {}",
        literal(name)
    ))?;
    Ok(rows.first().map(|row| Slot {
        plugin: text(row, 0).to_owned(),
        database: text(row, 1).to_owned(),
        wal_status: text(row, 2).to_owned(),
        confirmed: text(row, 3).parse::<Lsn>().ok(),
        active_pid: text(row, 4).parse().ok(),
    }))
}

/// Makes the slot and answers where it begins.
pub fn create_slot(session: &mut Session, name: &str) -> Result<Lsn, WireError> {
    // No snapshot: the rows that exist already are told by reconcile, not by a first start.
    let sql = format!(
        "CREATE_REPLICATION_SLOT {} LOGICAL pgoutput NOEXPORT_SNAPSHOT",
        sql::replication_identifier(name)
    );
    let rows = session.query(&sql)?;
    rows.first()
        .and_then(|row| text(row, 1).parse().ok())
        .ok_or_else(|| WireError::Protocol("CREATE_REPLICATION_SLOT answered no position".to_owned()))
}

/// Makes the publication that the routes file leaves to the relay, if it is missing. Only before there is a slot: one
/// that went missing later has a gap that nobody would see. `Ok(Err(_))` says who has to make it.
pub fn publish(session: &mut Session, source: &Source) -> Result<Result<(), Refusal>, WireError> {
    let name = source.publication.get_ref();
    let exists = format!("select 1 from pg_catalog.pg_publication where pubname = {}", literal(name));
    if !source.own_publication || !session.query(&exists)?.is_empty() {
        return Ok(Ok(()));
    }
    let sql = publication(source);
    match session.query(&sql) {
        Ok(_) => {
            tracing::info!(source = source.name.get_ref(), publication = name, "publication created");
            Ok(Ok(()))
        }
        Err(WireError::Server { code, message }) if code.starts_with(NOT_PERMITTED_OR_THERE) => {
            Ok(Err(Refusal::Contract(format!(
                "publication {name} cannot be made ({message}): have the owner of the tables run `{sql}`"
            ))))
        }
        Err(error) => Err(error),
    }
}

/// The class of SQLSTATEs that say so.
const NOT_PERMITTED_OR_THERE: &str = "42";

/// The statement that publishes what the routes tell.
pub fn publication(source: &Source) -> String {
    let tables = source.tables.iter().map(|table| {
        let (schema, name) = table.qualified();
        sql::table(schema, name)
    });
    let routes = source.tables.iter().flat_map(|table| &table.routes);
    format!(
        "create publication {} for table {} with (publish = '{}')",
        identifier(source.publication.get_ref()),
        tables.collect::<Vec<_>>().join(", "),
        operations(routes.filter_map(|route| route.deletes).any(|deletes| deletes != Deletes::Ignore))
    )
}

fn operations(deletes: bool) -> &'static str {
    if deletes { "insert, update, delete" } else { "insert, update" }
}

/// Whether what is published can be told, and what the catalog says of it: `Ok(Err(_))` says what does not fit.
pub fn contract(
    session: &mut Session,
    routes: &Routes,
    source: &Source,
) -> Result<Result<Catalog, Refusal>, WireError> {
    let refuse = |problem: String| Ok(Err(Refusal::Contract(problem)));
    let publication = source.publication.get_ref();
    let settings =
        session.query("select current_setting('wal_level'), current_setting('server_encoding')")?;
    if let Some(row) = settings.first() {
        if text(row, 0) != "logical" {
            return refuse(format!("wal_level is {}: set it to logical and restart Postgres", text(row, 0)));
        }
        if text(row, 1) == "SQL_ASCII" {
            return refuse(
                "the database's encoding is SQL_ASCII: its text need not be valid UTF-8".to_owned(),
            );
        }
    }
    let publications = session.query(&format!(
        "select pubdelete, pubtruncate from pg_catalog.pg_publication where pubname = {}",
        literal(publication)
    ))?;
    let Some(row) = publications.first() else {
        let sql = self::publication(source);
        return refuse(format!(
            "publication {publication} does not exist: create it before the slot, `{sql}`"
        ));
    };
    let (deletes, truncates) = (text(row, 0) == "t", text(row, 1) == "t");
    let mut relations = published(session, publication)?;
    let mut catalog = Catalog::default();
    catalog.learn(session, &relations)?;
    relations.iter_mut().for_each(|relation| catalog.settle(relation));
    Ok(fit(routes, source, &relations, (deletes, truncates)).map(|()| catalog))
}

pub fn published(session: &mut Session, publication: &str) -> Result<Vec<Relation>, WireError> {
    let version = session.query("select current_setting('server_version_num')")?;
    let version: u32 = version.first().map(|row| text(row, 0)).and_then(|n| n.parse().ok()).unwrap_or(0);
    // Column lists exist from 15 on.
    let listed = if version >= 150_000 { "and a.attname = any(p.attnames)" } else { "" };
    let rows = session.query(&format!(
        "select p.schemaname, p.tablename, a.attname, a.atttypid, c.relreplident, \
                exists (select from pg_catalog.pg_index i \
                        where i.indrelid = c.oid and a.attnum = any(i.indkey) \
                          and case c.relreplident when 'd' then i.indisprimary when 'i' then i.indisreplident \
                              else false end) \
         from pg_catalog.pg_publication_tables p \
         join pg_catalog.pg_namespace n on n.nspname = p.schemaname \
         join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = p.tablename \
         join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped {listed} \
         where p.pubname = {} order by 1, 2, a.attnum",
        literal(publication)
    ))?;
    let mut relations: Vec<Relation> = Vec::new();
    for row in &rows {
        let (schema, name) = (text(row, 0), text(row, 1));
        if relations.last().is_none_or(|last| last.schema != schema || last.name != name) {
            let (schema, name) = (schema.to_owned(), name.to_owned());
            let identity = text(row, 4).bytes().next().unwrap_or(b'd');
            relations.push(Relation { id: 0, schema, name, identity, columns: Vec::new() });
        }
        if let Some(relation) = relations.last_mut() {
            let type_oid = text(row, 3).parse().unwrap_or_default();
            let (name, key) = (text(row, 2).to_owned(), text(row, 5) == "t");
            relation.columns.push(Column { name, type_oid, key });
        }
    }
    Ok(relations)
}

/// Every published table is told or ignored, and every route finds its table and columns.
fn fit(
    routes: &Routes,
    source: &Source,
    relations: &[Relation],
    (deletes, truncates): (bool, bool),
) -> Result<(), Refusal> {
    let publication = source.publication.get_ref();
    let quoted = identifier(publication);
    let plans: Vec<Plan> = relations.iter().map(|relation| Plan::compile(routes, source, relation)).collect();
    let unsaid: Vec<&str> =
        plans.iter().filter(|plan| !plan.says_deletes()).map(|plan| plan.relation.as_str()).collect();
    let tells_deletes = plans.iter().any(Plan::tells_deletes);
    let mut problems = Vec::new();
    if truncates || (deletes && !unsaid.is_empty()) {
        let how = if deletes && !unsaid.is_empty() && !truncates {
            format!(", or say in the routes what becomes of them (`deletes`): {}", unsaid.join(", "))
        } else {
            String::new()
        };
        problems.push(format!(
            "publication {publication} publishes deletes or truncates, which the relay does not tell: \
             `alter publication {quoted} set (publish = '{}')`{how}",
            operations(tells_deletes && unsaid.is_empty())
        ));
    }
    if tells_deletes && !deletes {
        problems.push(format!(
            "the routes tell deletes, which publication {publication} does not publish: \
             `alter publication {quoted} set (publish = '{}')`",
            operations(true)
        ));
    }
    for plan in &plans {
        if plan.unknown {
            problems.push(format!("{} is published: give it routes, or list it in `ignore`", plan.relation));
        }
        problems.extend(plan.problems().map(|problem| problem.0.clone()));
    }
    for table in &source.tables {
        let (schema, name) = table.qualified();
        if !relations.iter().any(|relation| relation.schema == schema && relation.name == name) {
            let table = sql::table(schema, name);
            problems.push(format!(
                "{schema}.{name} has routes, but is not published: \
                 `alter publication {quoted} add table {table}`"
            ));
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Refusal::Contract(problems.join("; "))) }
}
