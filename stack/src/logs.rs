//! Logs: files that children write themselves, kept below a size, shown by `logs NAME`.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// A log larger than this is set aside once (`NAME.log.1`) and started again.
pub const LOG_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Caps one log. Children append, so cutting the file under them is safe; lines written between copy and cut
/// are lost, which is the price of not standing between a child and its log.
///
/// # Errors
/// When the copy cannot be written; the log is left as it is.
pub fn cap(log: &Path, limit: u64) -> Result<bool> {
    let Ok(meta) = fs::metadata(log) else { return Ok(false) };
    if meta.len() <= limit {
        return Ok(false);
    }
    let mut aside = log.as_os_str().to_owned();
    aside.push(".1");
    fs::copy(log, &aside).with_context(|| format!("cannot set {} aside", log.display()))?;
    File::options().write(true).open(log)?.set_len(0)?;
    Ok(true)
}

/// The last `count` lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The last lines of a log; empty when there is none.
pub fn tail(log: &Path, count: usize) -> String {
    read_end(log).map(|text| last_lines(&text, count)).unwrap_or_default()
}

/// At most the last megabyte: enough for any tail.
fn read_end(log: &Path) -> Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(1 << 20)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Prints a log's end, and with `follow` what comes after it, until interrupted.
///
/// # Errors
/// When there is no such log or the reader is gone.
pub fn show(log: &Path, lines: usize, follow: bool) -> Result<()> {
    let mut file = File::open(log).with_context(|| format!("no log {}", log.display()))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", tail(log, lines))?;
    let mut at = file.metadata()?.len();
    if !follow {
        return Ok(());
    }
    loop {
        let length = fs::metadata(log)?.len();
        if length < at {
            at = 0; // cut
        }
        file.seek(SeekFrom::Start(at))?;
        at += std::io::copy(&mut file, &mut out)?;
        out.flush()?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_cut_once_it_is_too_large_and_its_writer_goes_on() {
        let folder = std::env::temp_dir().join(format!("stack-logs-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("x.log");
        let mut writer = File::options().append(true).create(true).open(&log).unwrap();
        writer.write_all(&[b'a'; 100]).unwrap();
        assert!(!cap(&log, 100).unwrap());
        writer.write_all(b"b").unwrap();
        assert!(cap(&log, 100).unwrap());
        writer.write_all(b"after\n").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "after\n");
        assert_eq!(fs::metadata(folder.join("x.log.1")).unwrap().len(), 101);
        assert!(!cap(&folder.join("none.log"), 100).unwrap());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_last_lines_of_a_text() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 5), "a");
        assert_eq!(last_lines("", 5), "");
    }
}
