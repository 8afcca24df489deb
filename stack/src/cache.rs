//! Files that all stacks of a machine share: made once, beside their place, and moved there when they are whole.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::layout::Layout;

/// Makes a file or a folder, unless it is there. `make` gets an empty folder to work in, and returns the path in it that is
/// moved to `target`. Stacks that want the same wait for each other.
///
/// # Errors
/// When `make` fails, or the cache cannot be written.
pub fn once(layout: &Layout, target: &Path, make: impl FnOnce(&Path) -> Result<PathBuf>) -> Result<()> {
    let describe = || format!("cannot make {}", target.display());
    fs::create_dir_all(&layout.cache).with_context(describe)?;
    let mut lock = fd_lock::RwLock::new(fs::File::create(beside(target, ".lock")).with_context(describe)?);
    let _one_at_a_time = lock.write()?;
    if target.exists() {
        return Ok(());
    }
    let scratch = beside(target, ".new");
    if scratch.exists() {
        fs::remove_dir_all(&scratch).with_context(describe)?;
    }
    fs::create_dir(&scratch).with_context(describe)?;
    let made = make(&scratch)?;
    fs::rename(made, target).with_context(describe)?;
    fs::remove_dir_all(&scratch).with_context(describe)
}

/// A path beside the target.
fn beside(target: &Path, extension: &str) -> PathBuf {
    let mut path = target.as_os_str().to_owned();
    path.push(extension);
    path.into()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn it_is_made_once_and_never_by_half() {
        let folder = std::env::temp_dir().join(format!("stack-cache-{}", std::process::id()));
        let layout = Layout {
            root: folder.clone(),
            dir: folder.clone(),
            data: folder.clone(),
            cache: folder.join("cache"),
            base_port: 22_000,
            uid: None,
        };
        // The version is not an extension.
        let target = layout.cache.join("thing-1.2.3");
        let failed = once(&layout, &target, |scratch| {
            fs::write(scratch.join("thing"), "half")?;
            bail!("the power went")
        });
        assert!(failed.is_err() && !target.exists());
        let make = |text: &'static str| {
            once(&layout, &target, move |scratch| {
                assert_eq!(fs::read_dir(scratch)?.count(), 0, "what failed is gone");
                fs::write(scratch.join("thing"), text)?;
                Ok(scratch.join("thing"))
            })
        };
        make("whole").unwrap();
        make("another").unwrap();
        assert_eq!(fs::read_to_string(&target).unwrap(), "whole");
        let mut left: Vec<_> =
            fs::read_dir(&layout.cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["thing-1.2.3", "thing-1.2.3.lock"]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
