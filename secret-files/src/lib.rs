//! Takes a secret from a file: where the variable NAME holds one, NAME_FILE may name a file with it instead.
//!
//! * Every secret of a program can be given so: each option that hides its variable ([`try_parse`]), and each variable that
//!   a program reads by itself ([`value`]).
//! * Both NAME and NAME_FILE is a mistake, and so is a file that cannot be read, is empty or is no UTF-8. The error names the
//!   setting and the file, never what the file holds.
//! * An empty variable is none: a deployment's file may name a variable that nobody sets.
//! * Line ends at the end of the file do not belong to the secret.
//! * The secret stays in this process: it is neither an argument nor put into the environment. A value that is not usable is not shown,
//!   wherever it came from.
//! * A file may get another secret while the program runs: whoever connects asks for it as it is now ([`current`]), and so does
//!   whoever compares with what others show ([`Live`]).

mod live;

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, Error, Parser};

pub use live::Live;

const SUFFIX: &str = "_FILE";

/// The secrets that this process has taken from files, and the files. A handful: each is taken once, at the start.
static TAKEN: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());

/// The text of the variable `name`, or of the file that `name_FILE` names; nothing if neither is set.
///
/// # Errors
/// When both are set, or the file or the text cannot be used.
pub fn value(name: &str) -> Result<Option<String>> {
    let variable = |name: &str| env::var_os(name);
    match of_file(name, &variable)? {
        Some(text) => Ok(Some(text)),
        None => given(name, &variable)
            .map(|text| text.into_string().map_err(|_| anyhow!("{name} is no UTF-8")))
            .transpose(),
    }
}

/// The command line and the environment, with each secret that a file holds.
///
/// # Errors
/// As clap's, and when a secret's file cannot be used.
pub fn try_parse<C: Parser>() -> Result<C, Error> {
    parse(env::args_os().collect(), &|name| env::var_os(name))
}

/// The text of the file that `name_FILE` names, if it names one.
fn of_file(name: &str, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Option<String>> {
    let setting = format!("{name}{SUFFIX}");
    let Some(path) = given(&setting, variable) else { return Ok(None) };
    ensure!(given(name, variable).is_none(), "{name} and {setting} are both set; set one of them");
    take(&setting, Path::new(&path)).map(Some)
}

/// The secret in a file. From now on [`current`] knows where it came from.
///
/// # Errors
/// When the file cannot be used. The error names `setting` and the file.
pub fn take(setting: &str, path: &Path) -> Result<String> {
    let secret = read(path).with_context(|| setting.to_owned())?;
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    taken.retain(|(known, _)| *known != secret);
    taken.push((secret.clone(), path.to_owned()));
    Ok(secret)
}

/// The file from which this process took a secret.
pub fn origin(secret: &str) -> Option<PathBuf> {
    let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    taken.iter().find(|(known, _)| known == secret).map(|(_, path)| path.clone())
}

/// A secret that this process took from a file, as the file has it now: for each new connection. Without such a file, and while
/// it cannot be read, the secret as it is.
pub fn current(secret: &str) -> String {
    origin(secret).and_then(|path| read(&path).ok()).unwrap_or_else(|| secret.to_owned())
}

fn read(path: &Path) -> Result<String> {
    let shown = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {shown}"))?;
    // Its error would hold the bytes.
    let text = String::from_utf8(bytes).map_err(|_| anyhow!("{shown} is no UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    ensure!(!text.is_empty(), "{shown} is empty");
    Ok(text.to_owned())
}

fn given(name: &str, variable: &dyn Fn(&str) -> Option<OsString>) -> Option<OsString> {
    variable(name).filter(|text| !text.is_empty())
}

fn parse<C: Parser>(
    arguments: Vec<OsString>,
    variable: &dyn Fn(&str) -> Option<OsString>,
) -> Result<C, Error> {
    let mut command = with_files(C::command(), variable)
        .map_err(|why| Error::raw(ErrorKind::ValueValidation, format!("{why:#}\n")))?;
    let read = command.try_get_matches_from_mut(arguments);
    let config = read.and_then(|matches| C::from_arg_matches(&matches));
    config.map_err(|error| {
        // Parsing builds no subcommand but the one that was named, and an option has no text before.
        command.build();
        without_secret(error, &command).format(&mut command)
    })
}

/// The error without the value of an option that holds a secret.
fn without_secret(mut error: Error, command: &Command) -> Error {
    let of_secret = matches!(error.get(ContextKind::InvalidArg), Some(ContextValue::String(name)) if is_secret(command, name));
    // Of a value that is missing it is empty.
    let has_value = matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(value)) if !value.is_empty());
    if of_secret && has_value {
        error.insert(ContextKind::InvalidValue, ContextValue::String("(not shown)".to_owned()));
    }
    error
}

/// Whether the option, as clap writes it, holds one here or in a subcommand.
fn is_secret(command: &Command, option: &str) -> bool {
    let hides = |arg: &Arg| arg.is_hide_env_values_set() && arg.to_string() == option;
    command.get_arguments().any(hides) || command.get_subcommands().any(|below| is_secret(below, option))
}

/// The command, and its subcommands, with each secret of a file as the default of its option.
fn with_files(mut command: Command, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Command> {
    let secrets: Vec<(clap::Id, String)> = command
        .get_arguments()
        .filter(|option| option.is_hide_env_values_set())
        .filter_map(|option| Some((option.get_id().clone(), option.get_env()?.to_str()?.to_owned())))
        .collect();
    for (id, name) in secrets {
        if let Some(secret) = of_file(&name, variable)? {
            command = command.mut_arg(id, |option| holding(option, secret));
        } else if given(&name, variable).is_none() {
            // It may be set, and empty.
            command = command.mut_arg(id, |option| option.env(Resettable::<clap::builder::OsStr>::Reset));
        }
    }
    let names: Vec<String> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        let mut wrong = None;
        command = command.mut_subcommand(name, |subcommand| {
            with_files(subcommand, variable).unwrap_or_else(|why| {
                wrong = Some(why);
                Command::default()
            })
        });
        if let Some(why) = wrong {
            return Err(why);
        }
    }
    Ok(command)
}

/// The option with a secret instead of its variable, which may be set and empty. A flag on the command line goes before it.
fn holding(option: Arg, secret: String) -> Arg {
    let variable: Resettable<clap::builder::OsStr> = Resettable::Reset;
    // It is kept as long as the process lives anyway.
    let secret: &'static str = secret.leak();
    option.env(variable).default_value(secret).hide_default_value(true).required(false)
}

#[cfg(test)]
#[path = "lib_tests.rs"]
mod tests;
