//! The slots of the edge: a line of its configuration for each instance that a stack may have of a service behind it.
//!
//! * A slot without an instance is in maintenance: nothing is sent there, and nobody is asked there whether he is ready.
//! * The configuration says which slots are in use when HAProxy starts, and `scale` changes them while it runs.

use crate::layout::Layout;
use crate::services::Service;
use crate::services::further::Scalable;

/// A service behind the edge.
#[derive(Debug, PartialEq, Eq)]
pub struct Backend {
    pub service: Service,
    /// The backend that asks instances whether they are ready, and those that follow it.
    pub name: &'static str,
    pub followers: &'static [&'static str],
    /// Begins the names of the variables that have its slots.
    variable: &'static str,
}

pub static BACKENDS: [Backend; 2] = [
    Backend {
        service: Service::Payments,
        name: "payments-svc",
        followers: &["payments-svc-events"],
        variable: "PAYMENTS_SLOT",
    },
    Backend { service: Service::Balance, name: "balance-svc", followers: &[], variable: "BALANCE_SLOT" },
];

impl Backend {
    /// The backend of a service, if it is behind the edge.
    pub fn of(service: Service) -> Option<&'static Self> {
        BACKENDS.iter().find(|backend| backend.service == service)
    }
}

/// The variables of all slots: the address of each, which backends that follow have too, and its state, which they follow.
pub fn variables(layout: &Layout) -> impl Iterator<Item = (String, String)> {
    let backends = BACKENDS.iter().filter_map(|backend| Some((backend, Scalable::of(backend.service)?)));
    backends.flat_map(move |(backend, scalable)| {
        let count = scalable.count(layout);
        (1..).zip(scalable.instances()).flat_map(move |(number, instance)| {
            let (public, admin) = (layout.port(instance.public), layout.port(instance.admin));
            // No empty word: it would end the line.
            let state = if number <= count { "enabled" } else { "disabled" };
            let slot = format!("{}_{number}", backend.variable);
            [(format!("{slot}_STATE"), state.to_owned()), (slot, format!("127.0.0.1:{public} port {admin}"))]
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_slot_is_disabled_unless_the_stack_has_its_instance() {
        let dir = std::env::temp_dir().join(format!("stack-slots-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        let slots = || variables(&layout).collect::<BTreeMap<String, String>>();
        let used = || -> Vec<String> {
            let states = slots().into_iter().filter(|(name, _)| name.ends_with("_STATE"));
            states.filter(|(_, state)| state == "enabled").map(|(name, _)| name).collect()
        };
        assert_eq!(slots().len(), 32);
        assert_eq!(used(), ["BALANCE_SLOT_1_STATE", "PAYMENTS_SLOT_1_STATE", "PAYMENTS_SLOT_2_STATE"]);
        assert_eq!(slots()["PAYMENTS_SLOT_1"], "127.0.0.1:22020 port 22021");
        assert_eq!(slots()["PAYMENTS_SLOT_3"], "127.0.0.1:22104 port 22105");
        assert_eq!(slots()["PAYMENTS_SLOT_3_STATE"], "disabled");
        Scalable::of(Service::Payments).unwrap().keep(&layout, 1).unwrap();
        assert_eq!(used(), ["BALANCE_SLOT_1_STATE", "PAYMENTS_SLOT_1_STATE"]);
        std::fs::remove_dir_all(&layout.dir).unwrap();
    }
}
