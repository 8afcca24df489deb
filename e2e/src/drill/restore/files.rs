//! The files of one loss, and the variables of the runbook's scripts.

use std::path::PathBuf;

use anyhow::{Context, Result};
use stack::layout::Layout;
use uuid::Uuid;

use super::loss::{Database, Origin};
use crate::drill::harness::Harness;

const PAGE: &str = "restore.md";

/// A folder of its own where the servers keep their data, which servers may read and write.
pub struct Files {
    pub layout: Layout,
    origin: Origin,
    folder: String,
    /// Set once it is known.
    pub target_time: String,
    pub standby_url: String,
}

impl Files {
    /// # Errors
    /// When the stack is not known, or the folder cannot be made.
    pub fn new(origin: Origin) -> Result<Self> {
        let (layout, folder) = (Layout::from_env()?, format!("drill-{}", Uuid::new_v4()));
        layout.server_dir(&folder)?;
        layout.server_dir(&format!("{folder}/archive"))?;
        Ok(Self { layout, origin, folder, target_time: String::new(), standby_url: String::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.layout.data.join(&self.folder).join(name)
    }

    /// The data of the standby, which become those of the cluster.
    pub fn standby(&self) -> PathBuf {
        self.path("standby")
    }

    /// Runs the scripts of a section of the runbook; returns what they printed. `BACKUP` is the dump of a database, or what a
    /// cluster comes back from.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run(
        &self,
        harness: &mut Harness,
        heading: &str,
        database: Option<Database>,
    ) -> Result<String> {
        let text = |path: PathBuf| path.display().to_string();
        // The databases of a cluster come back from one place.
        let of_dump = database.filter(|_| self.origin == Origin::Dump);
        let backup = self.path(of_dump.map_or("cluster", Database::name));
        let variables = [
            ("DATABASE", database.map_or("", Database::name).to_owned()),
            ("SERVICE", database.map_or("", Database::service).to_owned()),
            ("BACKUP", text(backup)),
            ("ARCHIVE", text(self.path("archive"))),
            ("STANDBY", text(self.standby())),
            ("STANDBY_URL", self.standby_url.clone()),
            ("PGDATA", text(self.layout.postgres_data())),
            ("TARGET_TIME", self.target_time.clone()),
            ("CORO_OPERATOR", "drill".to_owned()),
            ("REASON", "a drill: the database was lost".to_owned()),
        ];
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Ok(harness.run_section(PAGE, heading, &variables).await?.join("\n"))
    }

    /// Removes them.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(self.layout.data.join(&self.folder)).context("the files of the drill")
    }
}
