//! The files of one loss, and the variables of the runbook's scripts.

use std::path::PathBuf;

use anyhow::{Context, Result};
use stack::layout::Layout;
use uuid::Uuid;

use super::loss::{Database, Origin};
use crate::drill::harness::Harness;

const PAGE: &str = "restore.md";

/// The sections of the page that the drill runs.
pub const TAKE_DUMP: &str = "A dump of a database";
pub const TAKE_BASE_BACKUP: &str = "A base backup of the cluster, and its WAL";
pub const MAKE_STANDBY: &str = "A standby";
pub const DUMP_COMES_BACK: &str = "A dump comes back";
pub const CLUSTER_COMES_BACK: &str = "A cluster comes back as of a time";
pub const STANDBY_TAKES_OVER: &str = "A standby takes over";
pub const LACKS: &str = "What it lacks";
pub const RECOVER: &str = "Recover, and open";
pub const RELAY_GOES_ON: &str = "The relay goes on";
pub const SUBSCRIBERS: &str = "Subscribers whose databases came back too";

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

    /// The variables of the scripts. `BACKUP` is the dump of a database, or what a cluster comes back from.
    fn variables(&self, database: Option<Database>) -> [(&'static str, String); 10] {
        let text = |path: PathBuf| path.display().to_string();
        // The databases of a cluster come back from one place.
        let of_dump = database.filter(|_| self.origin == Origin::Dump);
        let backup = self.path(of_dump.map_or("cluster", Database::name));
        [
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
        ]
    }

    /// Runs the scripts of a section of the runbook; returns what they printed.
    ///
    /// # Errors
    /// When one fails.
    pub async fn run(
        &self,
        harness: &mut Harness,
        heading: &str,
        database: Option<Database>,
    ) -> Result<String> {
        let variables = self.variables(database);
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::drill::runbook;

    #[test]
    fn the_databases_of_a_cluster_come_back_from_one_place_and_dumps_from_one_each() {
        let dir = std::env::temp_dir().join(format!("drill-files-{}", std::process::id()));
        let layout = Layout::new(Some(dir.clone()), 22_000).unwrap();
        let places = |origin| -> BTreeSet<String> {
            let (layout, folder) = (layout.clone(), "drill".to_owned());
            let files =
                Files { layout, origin, folder, target_time: String::new(), standby_url: String::new() };
            let backup = |database: &Database| {
                let variables = files.variables(Some(*database)).into_iter();
                variables.filter(|(name, _)| *name == "BACKUP").map(|(_, value)| value).collect::<String>()
            };
            Database::all().iter().map(backup).collect()
        };
        assert_eq!(places(Origin::Dump).len(), 3);
        assert_eq!((places(Origin::BaseBackup).len(), places(Origin::Promotion).len()), (1, 1));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_drill_runs_every_script_of_its_page_but_the_audit_which_it_makes_itself() {
        let sections = runbook::page(PAGE).unwrap();
        let with_scripts = sections.iter().filter(|section| !section.acts.is_empty());
        let found: BTreeSet<&str> = with_scripts.map(|section| section.heading.as_str()).collect();
        let run = [
            TAKE_DUMP,
            TAKE_BASE_BACKUP,
            MAKE_STANDBY,
            DUMP_COMES_BACK,
            CLUSTER_COMES_BACK,
            STANDBY_TAKES_OVER,
            LACKS,
            RECOVER,
            RELAY_GOES_ON,
            SUBSCRIBERS,
        ];
        assert_eq!(found, run.into_iter().chain(["Afterwards"]).collect());
    }
}
