//! The ways in which databases are lost, as the command line names them.

use std::fmt;

use anyhow::{Result, ensure};
use clap::ValueEnum;

/// A way in which databases are lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Loss {
    /// `restore`: what databases come back from.
    #[arg(long, value_enum, default_value_t)]
    pub from: Origin,
    /// `restore`, from dumps: those that are lost at the same time, with commas between. Without it each is lost alone, one after
    /// the other. The other origins bring back the cluster, which has all of them.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "DATABASE")]
    pub databases: Vec<Database>,
}

/// What a database comes back from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Origin {
    /// A dump of the database.
    #[default]
    Dump,
    /// A base backup of the cluster and its WAL archive, up to a point in time.
    BaseBackup,
    /// A standby of the cluster that has not received everything.
    Promotion,
}

/// A database of the saga, in the order in which several are recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Database {
    Balance,
    Payments,
    Processor,
}

impl Database {
    pub fn name(self) -> &'static str {
        match self {
            Self::Balance => "balance",
            Self::Payments => "payments",
            Self::Processor => "processor",
        }
    }

    /// The service that owns it.
    pub fn service(self) -> &'static str {
        match self {
            Self::Balance => "balance-svc",
            Self::Payments => "payments-svc",
            Self::Processor => "processor-svc",
        }
    }

    /// Each of them, as they are recovered.
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }
}

impl Loss {
    /// Each way in which the drills lose databases.
    pub fn all() -> Vec<Self> {
        let of = |from, databases: &[Database]| Self { from, databases: databases.to_vec() };
        vec![
            of(Origin::Dump, &[]),
            of(Origin::Dump, &[Database::Balance, Database::Payments]),
            of(Origin::BaseBackup, &[]),
            of(Origin::Promotion, &[]),
        ]
    }

    /// The databases that are lost at the same time, one group after the other; each in the order of its recovery.
    ///
    /// # Errors
    /// When a part of a cluster is named.
    pub fn groups(&self) -> Result<Vec<Vec<Database>>> {
        let mut named = self.databases.clone();
        named.sort_unstable();
        named.dedup();
        match (self.from, named.is_empty()) {
            (Origin::Dump, true) => Ok(Database::all().iter().map(|database| vec![*database]).collect()),
            (Origin::Dump, false) => Ok(vec![named]),
            (Origin::BaseBackup | Origin::Promotion, is_unnamed) => {
                ensure!(
                    is_unnamed || named == Database::all(),
                    "a cluster comes back with all of its databases: leave out --databases"
                );
                Ok(vec![Database::all().to_vec()])
            }
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.from.to_possible_value();
        write!(f, "--from {}", origin.as_ref().map_or("", |value| value.get_name()))?;
        if self.databases.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = self.databases.iter().map(|database| database.name()).collect();
        write!(f, " --databases {}", names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dumps_bring_back_what_is_named_and_clusters_everything() {
        use Database::{Balance, Payments, Processor};
        let groups =
            |from, databases: &[Database]| Loss { from, databases: databases.to_vec() }.groups().ok();
        assert_eq!(groups(Origin::Dump, &[]), Some(vec![vec![Balance], vec![Payments], vec![Processor]]));
        let two = groups(Origin::Dump, &[Processor, Balance, Processor]);
        assert_eq!(two, Some(vec![vec![Balance, Processor]]), "in the order of their recovery");
        for from in [Origin::BaseBackup, Origin::Promotion] {
            assert_eq!(groups(from, &[]), Some(vec![vec![Balance, Payments, Processor]]));
            assert_eq!(groups(from, &[Processor, Payments, Balance]), groups(from, &[]));
            assert_eq!(groups(from, &[Payments]), None);
        }
    }
}
