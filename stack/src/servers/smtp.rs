//! An SMTP server that keeps what it is sent: aiosmtpd, with a Maildir.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::text;
use crate::certificates;
use crate::layout::{Layout, Port};
use crate::spec::Spec;

/// The Python that has aiosmtpd: the distribution's, whose package it is.
pub fn program() -> Option<PathBuf> {
    let python = PathBuf::from("/usr/bin/python3");
    let mut command = Command::new(&python);
    command.args(["-c", "import aiosmtpd"]).stdin(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success()).then_some(python)
}

pub fn url(layout: &Layout) -> String {
    let scheme = if layout.is_encrypted() { "smtps" } else { "smtp" };
    format!("{scheme}://127.0.0.1:{}", layout.port(Port::Smtp))
}

/// The Maildir of all that was sent.
pub fn mails(layout: &Layout) -> PathBuf {
    layout.data.join("smtp/mails")
}

pub fn prepare(layout: &Layout) -> Result<Vec<Spec>> {
    let python = program().context("aiosmtpd is not installed")?;
    let home = layout.server_dir("smtp")?;
    let address = format!("127.0.0.1:{}", layout.port(Port::Smtp));
    let mails = text(&mails(layout));
    // -n: it is started as the user that it is to be.
    let mut argv = vec![text(&python), "-m".into(), "aiosmtpd".into(), "-n".into(), "-l".into(), address];
    if layout.is_encrypted() {
        certificates::give(layout, "smtp", &home)?;
        argv.extend(["--smtpscert".into(), text(&home.join("tls.crt"))]);
        argv.extend(["--smtpskey".into(), text(&home.join("tls.key"))]);
    }
    argv.extend(["-c".into(), "aiosmtpd.handlers.Mailbox".into(), mails]);
    Ok(vec![super::spec(layout, "smtp", home, argv, Port::Smtp)])
}
