//! Decides whether the server refuses an application's updates and deletes because they are published. Pure.
//!
//! * The server publishes an update or delete only if it can identify the changed row. Otherwise it refuses the statement
//!   itself, whoever runs it, as long as the publication exists.
//! * The rules are those of `CheckCmdReplicaIdentity` in the server's own version. The test suite compares this judgement
//!   with the server's, table by table.

use crate::postgres::facts::{Facts, GENERATED_COLUMNS, Member, Table};

/// The properties of a publication that the rules depend on.
#[derive(Debug, Clone, Copy)]
pub struct Publishing {
    pub version: u32,
    /// Stored generated columns are published.
    pub generated: bool,
}

impl Publishing {
    /// The relay's own publications.
    pub fn own(version: u32) -> Publishing {
        Publishing { version, generated: version >= GENERATED_COLUMNS }
    }

    /// The source's publication; without one, the relay's own.
    pub fn of(facts: &Facts) -> Publishing {
        match &facts.publication {
            Some(publication) => Publishing { version: facts.version, generated: publication.generated },
            None => Publishing::own(facts.version),
        }
    }
}

/// The reason for which the server refuses the updates and deletes of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Harm {
    /// No index identifies a row.
    Unidentified,
    /// The identity is the whole row, and a column list leaves columns out.
    FullWithList,
    /// The column list leaves out columns of the identity.
    NotListed(Vec<String>),
    /// The identity has generated columns that are not published. `fatal`: they cannot be published.
    Generated { columns: Vec<String>, fatal: bool },
    /// The row filter reads columns that the identity does not have.
    Filter(Vec<String>),
}

/// Returns the partitions of a table, or the table itself, whose updates and deletes the server refuses.
pub fn harms(publishing: Publishing, table: &Table) -> Vec<(&Member, Harm)> {
    let members = table.members().iter().filter(|member| member.is_publishable());
    members.filter_map(|member| Some((member, harm(publishing, table, member)?))).collect()
}

/// Whether a future partition will be identified: it has only the primary key of its root.
pub fn covers_new_partitions(table: &Table) -> bool {
    !table.is_partitioned() || (table.itself.primary_key.is_some() && !table.itself.deferrable)
}

fn harm(publishing: Publishing, table: &Table, member: &Member) -> Option<Harm> {
    if member.identity == 'f' {
        if table.listed {
            return Some(Harm::FullWithList);
        }
        return generated(publishing, member.generated.iter().map(|(name, kind)| (name, *kind)));
    }
    let Some(key) = &member.key else { return Some(Harm::Unidentified) };
    if table.listed {
        let listed = |name: &String| table.sent().any(|column| column.name == *name);
        let missing: Vec<String> = key.iter().filter(|name| !listed(name)).cloned().collect();
        if !missing.is_empty() {
            return Some(Harm::NotListed(missing));
        }
    } else {
        let in_key = key.iter().filter_map(|name| Some((name, *member.generated.get(name)?)));
        if let Some(harm) = generated(publishing, in_key) {
            return Some(harm);
        }
    }
    let outside: Vec<String> =
        table.filter_columns.iter().filter(|name| !key.contains(name)).cloned().collect();
    (!outside.is_empty()).then_some(Harm::Filter(outside))
}

fn generated<'m>(publishing: Publishing, columns: impl Iterator<Item = (&'m String, char)>) -> Option<Harm> {
    if publishing.version < GENERATED_COLUMNS {
        return None;
    }
    let (mut names, mut fatal) = (Vec::new(), false);
    for (name, kind) in columns {
        let stored = kind == 's';
        if !(stored && publishing.generated) {
            names.push(name.clone());
            fatal |= !stored;
        }
    }
    (!names.is_empty()).then_some(Harm::Generated { columns: names, fatal })
}
