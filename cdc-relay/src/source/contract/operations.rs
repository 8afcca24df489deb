//! The operations that a publication publishes, and those that routes take.

use crate::postgres::facts::Publication;
use crate::routes::row::Op;
use crate::routes::{Deletes, Source};

/// The operations of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operations {
    pub insert: bool,
    pub update: bool,
    pub delete: bool,
}

impl Operations {
    /// The operations that the routes take.
    pub fn of_routes(source: &Source) -> Operations {
        let routes = || source.tables.iter().flat_map(|table| &table.routes);
        let takes =
            |op: Op| routes().any(|route| route.op.is_empty() || route.op.iter().any(|o| *o.get_ref() == op));
        Operations {
            insert: takes(Op::Insert),
            update: takes(Op::Update),
            delete: routes().any(|route| route.deletes.is_some_and(|deletes| deletes != Deletes::Ignore)),
        }
    }

    pub fn of_publication(publication: &Publication) -> Operations {
        let Publication { insert, update, delete, .. } = *publication;
        Operations { insert, update, delete }
    }

    /// The list for the option `publish`.
    pub fn list(self) -> String {
        let all = [(self.insert, "insert"), (self.update, "update"), (self.delete, "delete")];
        all.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect::<Vec<_>>().join(", ")
    }

    /// Whether the server must be able to identify a changed row.
    pub fn need_identity(self) -> bool {
        self.update || self.delete
    }
}
