//! Gives a service its secrets by files, which may get other secrets while it runs.
//!
//! * A variable that holds a secret is replaced by NAME_FILE and a file with its value, in the service's own folder.
//! * A file is replaced as a whole; whoever reads it finds the old value or the new one.
//! * `rotate` writes the files anew; services read those of their servers again when they connect.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::layout::{Layout, write_private};
use crate::login::Login;
use crate::services::Instance;
use crate::spec::Spec;

/// Everything that opens anything.
///
/// # Errors
/// As [`Login::password`].
pub fn all(layout: &Layout) -> Result<Vec<String>> {
    let logins = Login::ALL.into_iter().map(|login| login.password(layout));
    logins.chain([layout.admin_token()]).collect()
}

/// The specification of a service as it is started: its secrets are in files.
///
/// # Errors
/// When one cannot be written.
pub fn spec(layout: &Layout, instance: Instance) -> Result<Spec> {
    let secrets = all(layout)?;
    let mut spec = instance.spec(layout)?;
    let folder = layout.dir.join("services").join(instance.name).join("secrets");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut env = BTreeMap::new();
    for (name, value) in spec.env {
        if secrets.iter().any(|secret| value.contains(secret)) {
            let path = folder.join(&name);
            write_private(&path, &value)?;
            env.insert(format!("{name}_FILE"), path.display().to_string());
        } else {
            env.insert(name, value);
        }
    }
    spec.env = env;
    Ok(spec)
}

/// Writes the files of all services of the stack.
///
/// # Errors
/// When one cannot be written.
pub fn write(layout: &Layout) -> Result<()> {
    Instance::of(layout).into_iter().try_for_each(|instance| spec(layout, instance).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::INSTANCES;

    #[test]
    fn no_secret_is_in_the_environment_and_each_is_in_its_file() {
        let dir = std::env::temp_dir().join(format!("stack-secret-files-{}", std::process::id()));
        let layout = Layout::new(Some(dir), 22_000).unwrap();
        let mut files = 0;
        for instance in INSTANCES {
            let (described, started) = (instance.spec(&layout).unwrap(), spec(&layout, instance).unwrap());
            assert_eq!(described.env.len(), started.env.len());
            for (name, value) in described.env {
                match started.env.get(&format!("{name}_FILE")) {
                    Some(path) => {
                        assert_eq!(fs::read_to_string(path).unwrap(), value);
                        files += 1;
                    }
                    None => assert_eq!(started.env[&name], value),
                }
            }
            let all = all(&layout).unwrap();
            let shown = started.env.values().any(|value| all.iter().any(|secret| value.contains(secret)));
            assert!(!shown, "{}", instance.name);
        }
        assert!(files > 15, "{files}");
        fs::remove_dir_all(&layout.dir).unwrap();
    }
}
