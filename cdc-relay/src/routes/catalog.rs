//! Looks up in the catalog what the WAL does not say of a table.
//!
//! * That is: the built-in type that each column prints like, and the columns that identify a row where the replica identity
//!   does not say.
//! * Look-ups happen at the start of a session and when a relation is announced, never per row.
//! * The catalog is newer than the WAL: a type that was dropped in between is emitted as text.

use std::collections::{BTreeMap, BTreeSet};

use crate::postgres::connection_url::Database;
use crate::postgres::decode::relation::Relation;
use crate::postgres::error::PostgresError;
use crate::postgres::facts::{Facts, Question, ask};
use crate::postgres::session::Session;
use crate::routes::json::{self, Form};

/// A type, as `pg_type` describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    /// Prints like itself or like text: enums, composites, ranges, and types of extensions.
    Plain,
    Domain {
        base: u32,
    },
    Array {
        element: u32,
    },
}

#[derive(Debug, Clone, Default)]
pub struct Catalog {
    types: BTreeMap<u32, Type>,
    /// The columns that identify a row, by schema and table.
    keys: BTreeMap<(String, String), Vec<String>>,
    /// The tables that the stream has announced, by oid.
    announced: BTreeSet<u32>,
}

/// Whether `json` has a form for the type.
fn is_familiar(oid: u32) -> bool {
    oid == json::TEXT || Form::natural(oid) != Form::Text
}

impl Catalog {
    /// Whether this table needs no look-up.
    pub fn knows(&self, relation: &Relation) -> bool {
        let types = relation
            .columns
            .iter()
            .all(|column| is_familiar(column.type_oid) || self.types.contains_key(&column.type_oid));
        types && (has_identity(relation) || self.key(relation).is_some())
    }

    /// Annotates a relation with the catalog's facts. A new relation is looked up on a session of its own.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub fn resolve(&mut self, database: &Database, relation: &Relation) -> Result<Relation, PostgresError> {
        let mut relation = relation.clone();
        if !self.knows(&relation) {
            let mut session = Session::connect(database)?;
            self.load(&mut session, std::slice::from_ref(&relation))?;
        }
        self.annotate(&mut relation);
        Ok(relation)
    }

    /// As `resolve`, for a relation that the stream announces: before a table's first row, and after a change of the table. A
    /// change may have changed the key, so that the catalog is asked again unless the announcement has the key.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub fn resolve_announced(
        &mut self,
        database: &Database,
        relation: &Relation,
    ) -> Result<Relation, PostgresError> {
        if !self.announced.insert(relation.id) && !has_identity(relation) {
            self.keys.remove(&(relation.schema.clone(), relation.name.clone()));
        }
        self.resolve(database, relation)
    }

    /// Looks up the unknown facts of these tables.
    pub fn load(&mut self, session: &mut Session, relations: &[Relation]) -> Result<(), PostgresError> {
        let columns = relations.iter().flat_map(|relation| &relation.columns);
        let mut wanted: BTreeSet<u32> = columns.map(|column| column.type_oid).collect();
        loop {
            wanted.retain(|oid| !is_familiar(*oid) && !self.types.contains_key(oid));
            if wanted.is_empty() {
                break;
            }
            self.load_types(session, &wanted)?;
            // The types that a type consists of. A dropped type is plain text.
            let inner = wanted.iter().map(|oid| *self.types.entry(*oid).or_insert(Type::Plain));
            wanted = inner
                .filter_map(|found| match found {
                    Type::Plain => None,
                    Type::Domain { base: oid } | Type::Array { element: oid } => Some(oid),
                })
                .collect();
        }
        let unknown =
            relations.iter().filter(|relation| !has_identity(relation) && self.key(relation).is_none());
        let unknown: Vec<(&str, &str)> =
            unknown.map(|relation| (relation.schema.as_str(), relation.name.as_str())).collect();
        if !unknown.is_empty() {
            self.load_keys(&ask(session, &Question::of_named(unknown))?);
        }
        Ok(())
    }

    fn load_types(&mut self, session: &mut Session, wanted: &BTreeSet<u32>) -> Result<(), PostgresError> {
        let list: Vec<String> = wanted.iter().map(u32::to_string).collect();
        // Category A with a comma prints as `{1,2}`, except for the two vectors.
        let rows = session.query(&format!(
            "select oid, case when typtype = 'd' then typbasetype else 0 end, \
                    case when typcategory = 'A' and typlen = -1 and typdelim = ',' and typtype = 'b' \
                         and typelem <> 0 and typname not in ('int2vector', 'oidvector') then typelem else 0 end \
             from pg_catalog.pg_type where oid in ({})",
            list.join(", ")
        ))?;
        for row in &rows {
            let number = |index: usize| {
                let text = row.get(index).and_then(Option::as_deref).unwrap_or_default();
                text.parse::<u32>().unwrap_or_default()
            };
            let found = match (number(1), number(2)) {
                (0, 0) => Type::Plain,
                (0, element) => Type::Array { element },
                (base, _) => Type::Domain { base },
            };
            self.types.insert(number(0), found);
        }
        Ok(())
    }

    /// Takes over the keys of these tables.
    pub fn load_keys(&mut self, facts: &Facts) {
        for table in &facts.tables {
            let name = (table.itself.schema.clone(), table.itself.name.clone());
            self.keys.insert(name, table.key().to_vec());
        }
    }

    /// Replaces types by the built-in ones that they print like, and marks the key.
    pub fn annotate(&self, relation: &mut Relation) {
        let key = (!has_identity(relation)).then(|| self.key(relation).unwrap_or_default());
        for column in &mut relation.columns {
            column.type_oid = self.printed_like(column.type_oid);
            if let Some(key) = key {
                column.key = key.contains(&column.name);
            }
        }
    }

    fn key(&self, relation: &Relation) -> Option<&[String]> {
        // A copy of two short names, once per announcement.
        let names = self.keys.get(&(relation.schema.clone(), relation.name.clone()))?;
        let there = |name: &String| relation.columns.iter().any(|column| column.name == *name);
        names.iter().all(there).then_some(names)
    }

    fn printed_like(&self, oid: u32) -> u32 {
        match self.types.get(&oid) {
            _ if is_familiar(oid) => oid,
            Some(Type::Domain { base }) => self.printed_like(*base),
            Some(Type::Array { element }) => json::array_of(self.element(*element)),
            Some(Type::Plain) | None => json::TEXT,
        }
    }

    /// As `printed_like`; an array of a domain over an array prints its elements as text.
    fn element(&self, oid: u32) -> u32 {
        let like = self.printed_like(oid);
        if matches!(Form::natural(like), Form::Array { .. }) { json::TEXT } else { like }
    }
}

/// Whether exactly the key's columns are marked. They are not if there is no key, or if the relation was not announced.
pub fn has_identity(relation: &Relation) -> bool {
    !matches!(relation.identity, b'f' | b'n') && relation.columns.iter().any(|column| column.key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::decode::relation::Column;

    fn catalog() -> Catalog {
        let types = [
            (100, Type::Plain),                  // an enum
            (101, Type::Array { element: 100 }), // of them
            (102, Type::Domain { base: 20 }),
            (103, Type::Domain { base: 102 }),
            (104, Type::Array { element: 103 }),
            (105, Type::Domain { base: 1007 }),
            (106, Type::Array { element: 105 }),
        ];
        let key = (("public".to_owned(), "t".to_owned()), vec!["b".to_owned()]);
        Catalog { types: types.into(), keys: [key].into(), ..Catalog::default() }
    }

    #[test]
    fn a_type_prints_like_what_it_is_made_of() {
        let like = |oid| catalog().printed_like(oid);
        assert_eq!(like(100), json::TEXT);
        assert_eq!(like(101), 1009);
        assert_eq!((like(102), like(103)), (20, 20));
        assert_eq!(like(104), 1016);
        assert_eq!((like(105), like(106)), (1007, 1009));
        assert_eq!((like(3802), like(25)), (3802, 25));
        assert_eq!(like(99_999), json::TEXT);
    }

    #[test]
    fn under_identity_full_the_key_is_the_primary_key() {
        let column = |name: &str| Column { name: name.to_owned(), type_oid: 23, key: true };
        let relation = |identity| Relation {
            id: 1,
            schema: "public".to_owned(),
            name: "t".to_owned(),
            identity,
            columns: vec![column("a"), column("b")],
        };
        let keys = |identity| {
            let mut relation = relation(identity);
            catalog().annotate(&mut relation);
            relation.columns.iter().map(|column| column.key).collect::<Vec<_>>()
        };
        assert_eq!(keys(b'f'), [false, true]);
        assert_eq!(keys(b'd'), [true, true]);
        let mut renamed = relation(b'f');
        renamed.columns[1].name = "c".to_owned();
        assert!(!Catalog::default().knows(&renamed));
        catalog().annotate(&mut renamed);
        assert!(renamed.columns.iter().all(|column| !column.key));
    }
}
