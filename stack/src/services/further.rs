//! The services of which a stack has as many instances as somebody asks for (`cargo stack scale`).
//!
//! * An instance is a number from 1 to [`INSTANCES_MAX`]. Its name and its ports follow from that number alone.
//! * A stack keeps how many instances of a service it has, and every later command knows them. `clean` ends it.
//! * Without a choice there are those of [`INSTANCES`].

use std::fs;

use anyhow::{Context, Result};

use super::{INSTANCES, Instance, Service};
use crate::layout::{FURTHER_FIRST, Layout, Port, write_private};

/// The most instances of one service. The edge has as many slots for it.
pub const INSTANCES_MAX: usize = 8;

/// The names of a service's instances, in the order of their numbers.
macro_rules! names {
    ($name:literal) => {
        [
            $name,
            concat!($name, "-2"),
            concat!($name, "-3"),
            concat!($name, "-4"),
            concat!($name, "-5"),
            concat!($name, "-6"),
            concat!($name, "-7"),
            concat!($name, "-8"),
        ]
    };
}

/// A service that any number of instances may share.
#[derive(Debug, PartialEq, Eq)]
pub struct Scalable {
    pub service: Service,
    /// The names of its instances.
    pub names: [&'static str; INSTANCES_MAX],
    /// The first port of its further instances, and how many ports each of them has.
    first_port: u16,
    listeners: u16,
}

/// All of them. The others are one of a kind: a second relay waits for the first one, and the tracer puts together what it has
/// received itself.
pub static SCALABLE: [Scalable; 6] = [
    scalable(Service::Payments, names!("payments-svc"), 0, 2),
    scalable(Service::Balance, names!("balance-svc"), 16, 2),
    scalable(Service::Processor, names!("processor-svc"), 32, 2),
    scalable(Service::SearchIndexer, names!("search-indexer"), 48, 1),
    scalable(Service::Notifier, names!("notifier"), 56, 1),
    scalable(Service::Fraud, names!("fraud"), 64, 1),
];

const fn scalable(
    service: Service,
    names: [&'static str; INSTANCES_MAX],
    offset: u16,
    listeners: u16,
) -> Scalable {
    Scalable { service, names, first_port: FURTHER_FIRST + offset, listeners }
}

impl Scalable {
    pub fn named(name: &str) -> Option<&'static Self> {
        SCALABLE.iter().find(|scalable| scalable.names[0] == name)
    }

    pub fn of(service: Service) -> Option<&'static Self> {
        SCALABLE.iter().find(|scalable| scalable.service == service)
    }

    /// Its instances, in the order of their numbers, whether a stack has them or not.
    pub fn instances(&self) -> impl Iterator<Item = Instance> {
        (0_u16..).zip(self.names).map(move |(nth, name)| {
            let known = INSTANCES.into_iter().find(|instance| instance.name == name);
            known.unwrap_or_else(|| {
                let public = self.first_port + nth * self.listeners;
                let (public, admin) = (Port::Further(public), Port::Further(public + self.listeners - 1));
                Instance { service: self.service, name, public, admin }
            })
        })
    }

    /// How many instances a stack has of it.
    pub fn count(&self, layout: &Layout) -> usize {
        let kept = fs::read_to_string(layout.scale_file()).unwrap_or_default();
        count_in(&kept, self.names[0]).unwrap_or_else(|| self.count_at_first())
    }

    fn count_at_first(&self) -> usize {
        INSTANCES.iter().filter(|instance| instance.service == self.service).count()
    }

    /// Keeps how many instances the stack has of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, layout: &Layout, count: usize) -> Result<()> {
        let others = SCALABLE.iter().filter(|other| *other != self).map(|other| (other, other.count(layout)));
        let chosen = others.chain([(self, count)]).filter(|(it, count)| *count != it.count_at_first());
        let lines = chosen.map(|(it, count)| format!("{} {count}\n", it.names[0]));
        write_private(&layout.scale_file(), &lines.collect::<String>())
            .context("cannot keep the number of instances")
    }
}

/// The number that a list has for this name, if it is one that may be.
fn count_in(list: &str, name: &str) -> Option<usize> {
    let line = list.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line?.parse().ok().filter(|count| (1..=INSTANCES_MAX).contains(count))
}

/// The instances that a stack has of these services.
pub fn of(layout: &Layout) -> Vec<Instance> {
    SCALABLE.iter().flat_map(|scalable| scalable.instances().take(scalable.count(layout))).collect()
}

/// Every instance that a stack may have of these services.
pub fn all() -> impl Iterator<Item = Instance> {
    SCALABLE.iter().flat_map(Scalable::instances)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_first_instances_are_those_of_every_stack() {
        let known: BTreeSet<&str> = INSTANCES.iter().map(|instance| instance.name).collect();
        for scalable in &SCALABLE {
            let names: Vec<&str> = scalable.instances().map(|instance| instance.name).collect();
            let first = scalable.count_at_first();
            assert!(first >= 1 && names[..first].iter().all(|name| known.contains(name)), "{names:?}");
            assert!(!names[first..].iter().any(|name| known.contains(name)), "{names:?}");
            assert_eq!(names[0], scalable.service.program());
        }
        let names: BTreeSet<&str> = all().map(|instance| instance.name).collect();
        assert_eq!(names.len(), SCALABLE.len() * INSTANCES_MAX);
    }

    #[test]
    fn a_list_that_says_nothing_useful_says_nothing() {
        let list = "payments-svc 6\nbalance-svc 0\nprocessor-svc 9\nnotifier x\nfraud\n";
        assert_eq!(count_in(list, "payments-svc"), Some(6));
        for name in ["balance-svc", "processor-svc", "notifier", "fraud", "search-indexer", "payments"] {
            assert_eq!(count_in(list, name), None, "{name}");
        }
    }

    #[test]
    fn a_stack_keeps_its_numbers_until_its_folder_is_removed() {
        let dir = std::env::temp_dir().join(format!("stack-further-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        let payments = || -> Vec<&str> {
            let all = Instance::of(&layout).into_iter();
            all.filter(|instance| instance.service == Service::Payments).map(|it| it.name).collect()
        };
        assert_eq!(payments(), ["payments-svc", "payments-svc-2"]);
        let [scalable, balance] =
            [Service::Payments, Service::Balance].map(|service| Scalable::of(service).unwrap());
        scalable.keep(&layout, 3).unwrap();
        balance.keep(&layout, 2).unwrap();
        assert_eq!((scalable.count(&layout), balance.count(&layout)), (3, 2));
        assert_eq!(payments(), ["payments-svc", "payments-svc-2", "payments-svc-3"]);
        // Those of every stack are no choice: a later version may have others.
        scalable.keep(&layout, 2).unwrap();
        assert_eq!(fs::read_to_string(layout.scale_file()).unwrap(), "balance-svc 2\n");
        scalable.keep(&layout, 1).unwrap();
        assert_eq!(payments(), ["payments-svc"]);
        fs::remove_dir_all(&layout.dir).unwrap();
        assert_eq!(payments(), ["payments-svc", "payments-svc-2"]);
    }
}
