//! The revision of a running system: the programs of its processes, and the migrations of its databases.
//!
//! * Two programs are the same if their files are, byte by byte. A number that they print would prove nothing.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coroctl::stack::Stack;
use stack::control::Client;
use stack::layout::Layout;
use stack::services::{Instance, Service};

/// The databases of the saga.
const DATABASES: [&str; 3] = ["payments", "balance", "processor"];
const CHUNK_BYTES: usize = 1 << 20;

/// What runs, and on what.
pub struct Revision {
    /// By the names of the processes. Each file is open, so that it can be read although another one has taken its path.
    programs: BTreeMap<String, Program>,
    /// The newest migration of each database.
    schemas: BTreeMap<&'static str, i32>,
}

struct Program {
    file: File,
    /// What it is called in the folder of a release.
    name: &'static str,
}

impl Revision {
    /// As it is now. The gateway is another company's, so it is left out.
    ///
    /// # Errors
    /// When a process or a database is not there.
    pub async fn now(stack: &Stack) -> Result<Self> {
        let programs = tokio::task::spawn_blocking(programs).await.context("the programs")??;
        let mut schemas = BTreeMap::new();
        for name in DATABASES {
            schemas.insert(name, sql::version(&stack.postgres_admin_url, name).await?);
        }
        Ok(Self { programs, schemas })
    }

    /// Makes sure that each process runs the program of this folder.
    ///
    /// # Errors
    /// When one does not.
    pub fn ensure_of(&self, release: &Path) -> Result<()> {
        for (process, Program { file, name }) in &self.programs {
            let released = release.join(name);
            let of_release = File::open(&released).with_context(|| released.display().to_string())?;
            ensure!(is_same(file, &of_release)?, "{process} does not run {}", released.display());
        }
        Ok(())
    }

    /// What has changed since `before`, in words, and how many processes run another program.
    ///
    /// # Errors
    /// When a program cannot be read.
    pub fn changes_since(&self, before: &Self) -> Result<(usize, String)> {
        let mut others = 0;
        for (process, Program { file, .. }) in &self.programs {
            let Some(was) = before.programs.get(process) else { continue };
            others += usize::from(!is_same(file, &was.file)?);
        }
        let migrated = self.schemas.iter().filter_map(|(name, version)| {
            let was = before.schemas.get(name)?;
            (was != version).then(|| format!("{name} V{was} to V{version}"))
        });
        let migrated: Vec<String> = migrated.collect();
        let schemas = if migrated.is_empty() { "none".to_owned() } else { migrated.join(", ") };
        let all = self.programs.len();
        Ok((
            others,
            format!("{others} of {all} processes run other programs than before; migrations: {schemas}"),
        ))
    }
}

fn programs() -> Result<BTreeMap<String, Program>> {
    let layout = Layout::from_env()?;
    let children = Client::of_running(&layout)?.status()?;
    let ours = Instance::of(&layout).into_iter().filter(|instance| instance.service != Service::Gateway);
    // What came with this revision did not run before.
    let running = ours
        .filter_map(|instance| Some((instance, children.iter().find(|child| child.name == instance.name)?)));
    let opened = running.map(|(instance, child)| {
        let id = child.id.with_context(|| format!("{} does not run", instance.name))?;
        let path = PathBuf::from(format!("/proc/{}/exe", id.pid));
        let file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok((instance.name.to_owned(), Program { file, name: instance.service.program() }))
    });
    opened.collect()
}

/// Whether two files have the same content.
fn is_same(one: &File, other: &File) -> Result<bool> {
    let (left, right) = (one.metadata()?, other.metadata()?);
    if (left.dev(), left.ino()) == (right.dev(), right.ino()) {
        return Ok(true);
    }
    if left.len() != right.len() {
        return Ok(false);
    }
    // Opened anew, since what was read before would be left out.
    let mut readers = [again(one)?, again(other)?];
    let (mut left, mut right) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    loop {
        let read = fill(&mut readers[0], &mut left)?;
        if fill(&mut readers[1], &mut right)? != read || left[..read] != right[..read] {
            return Ok(false);
        }
        if read < CHUNK_BYTES {
            return Ok(true);
        }
    }
}

fn again(file: &File) -> Result<BufReader<File>> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(BufReader::new(fs::File::open(&path).context(path)?))
}

/// Reads until the buffer is full or the file ends; returns the bytes.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match reader.read(&mut buffer[read..])? {
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_the_same_by_their_bytes() {
        let folder = std::env::temp_dir().join(format!("drill-revision-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = |name: &str, content: &[u8]| {
            fs::write(folder.join(name), content).unwrap();
            File::open(folder.join(name)).unwrap()
        };
        let long = vec![7; 2 * CHUNK_BYTES];
        let mut other = long.clone();
        *other.last_mut().unwrap() = 8;
        let (one, copy, other) = (file("one", &long), file("copy", &long), file("other", &other));
        let (short, empty) = (file("short", b"x"), file("empty", b""));
        for (left, right, expected) in [
            (&one, &one, true),
            (&one, &copy, true),
            (&one, &copy, true),
            (&one, &other, false),
            (&one, &short, false),
            (&empty, &short, false),
        ] {
            assert_eq!(is_same(left, right).unwrap(), expected);
        }
        // A program that is replaced under its path is still the one that runs.
        fs::remove_file(folder.join("one")).unwrap();
        assert!(is_same(&one, &copy).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }
}
