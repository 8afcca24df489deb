//! Services from the programs of another revision, side by side with those of this one.
//!
//! * A program belongs to the routes file of its sources: a relay refuses a file that it does not understand, and tables that have no
//!   route. So where the folder of programs is below sources, the routes file is theirs.
//! * Everything else is as in this revision: ports, secrets, servers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::control::{Client, Reply, Request};
use crate::layout::{self, Layout};
use crate::secrets;
use crate::services::Instance;
use crate::shards;
use crate::spec::Spec;

/// The program of a service in a folder of programs.
///
/// # Errors
/// When it is not there.
pub fn program(folder: &Path, instance: Instance) -> Result<PathBuf> {
    let program = folder.join(instance.service.program());
    ensure!(program.is_file(), "there is no {}", program.display());
    program.canonicalize().with_context(|| program.display().to_string())
}

/// The specification of a service by the program in this folder.
///
/// # Errors
/// When the program is not there, or a secret cannot be written.
pub fn spec(layout: &Layout, instance: Instance, folder: &Path) -> Result<Spec> {
    let program = program(folder, instance)?;
    let mut spec = secrets::spec(layout, instance)?;
    let sources = program.ancestors().find(layout::is_root);
    if let (Some(sources), Some(routes)) = (sources, spec.env.get_mut("RELAY_ROUTES")) {
        if Path::new(routes.as_str()) == shards::routes_file(layout, &layout.root) {
            shards::write_routes(layout, sources)?;
            *routes = shards::routes_file(layout, sources).display().to_string();
        } else {
            let path = Path::new(routes.as_str()).strip_prefix(&layout.root).map(|path| sources.join(path));
            *routes = path.context("a routes file outside of the sources")?.display().to_string();
        }
    }
    if let Some(first) = spec.argv.first_mut() {
        *first = program.display().to_string();
    }
    Ok(spec)
}

/// Replaces a process by another specification, or starts it anew if it has that one; returns when the new one runs.
///
/// # Errors
/// When the supervisor refuses.
pub fn replace(client: &mut Client, spec: Spec) -> Result<()> {
    let name = spec.name.clone();
    match client.send(&Request::Run { spec })? {
        Reply::Done { changed: false } => client.send(&Request::Restart { name }).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_relay_of_other_sources_gets_their_routes_and_every_other_program_what_it_has() {
        let dir = std::env::temp_dir().join(format!("stack-release-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let layout = Layout::new(Some(dir.join("stack")), 22_000).unwrap();
        let sources = dir.canonicalize().unwrap().join("sources");
        let folder = sources.join("target/release");
        fs::create_dir_all(&folder).unwrap();
        for name in ["cdc-relay", "balance-svc"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let of = |name: &str| spec(&layout, Instance::named(name).unwrap(), &folder);
        let routes = |spec: Spec| spec.env.get("RELAY_ROUTES").cloned();
        // Programs alone, without their sources.
        let ours = layout.root.join("cdc-relay/relay.toml").display().to_string();
        assert_eq!(routes(of("cdc-relay").unwrap()), Some(ours));
        for file in ["stack/Cargo.toml", "sql/Cargo.toml"] {
            fs::create_dir_all(sources.join(file).parent().unwrap()).unwrap();
            fs::write(sources.join(file), "").unwrap();
        }
        let theirs = sources.join("cdc-relay/relay.toml").display().to_string();
        let relay = of("cdc-relay").unwrap();
        assert_eq!(relay.argv, [folder.join("cdc-relay").display().to_string(), "run".to_owned()]);
        assert_eq!(routes(relay), Some(theirs));
        assert_eq!(routes(of("balance-svc").unwrap()), None);
        assert!(of("processor-svc").unwrap_err().to_string().contains("there is no"));
        fs::remove_dir_all(dir).unwrap();
    }
}
