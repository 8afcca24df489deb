//! Test programs: built all at once, run side by side.
//!
//! * Cargo builds every program in one go, so that both cores have work; it names what it built.
//! * Programs of one lane run one after the other, lanes at the same time. Who shares a lane is the caller's choice.
//! * Every line of a program is shown as it comes, under the program's name; all programs run, also after a failure.
//! * A program that prints nothing for long hangs. It is ended, and the tests that it was at have failed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;

use super::libtest::Reader;
use super::totals::Totals;
use crate::layout::Layout;
use crate::output::{Progress, say};
use crate::workspace::Priority;
use crate::{environment, workspace};

/// The relay's tests wait for servers of their own for most of their time, so more run at once than there are cores.
const RELAY_TEST_THREADS: &str = "4";
/// More than the longest test takes, on a slow machine too.
const SILENCE_MAX: Duration = Duration::from_secs(20 * 60);

/// The needs of a test program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the tests inside of a library or a program.
    Unit,
    /// Servers, and for some the services.
    Integration,
}

/// A test program that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    pub package: String,
    /// Of the target: `it`, or the library's.
    pub target: String,
    pub kind: Kind,
    program: PathBuf,
    /// The package's folder, in which cargo would run it.
    folder: PathBuf,
}

/// A test program, and what it is asked to run.
#[derive(Debug, Clone)]
pub struct Run {
    suite: Suite,
    arguments: Vec<String>,
    /// Other programs use the stack at the same time.
    is_beside: bool,
}

impl Run {
    /// The same beside other programs that use the stack.
    pub fn beside(self) -> Self {
        Self { is_beside: true, ..self }
    }

    /// Runs it, and shows what it prints.
    fn start(&self, layout: &Layout, variables: &Variables, priority: Priority) -> Result<Totals> {
        let (suite, began) = (&self.suite, Instant::now());
        let program = suite.program.display().to_string();
        let mut command = workspace::command_with(layout, &program, priority);
        command
            .current_dir(&suite.folder)
            .args(&self.arguments)
            .envs(variables)
            .envs(environment::trust(layout));
        // Of an asynchronous test it has hundreds of lines, and none of them is the test's but the one that panicked.
        command.env("RUST_BACKTRACE", "0");
        if self.is_beside {
            command.env(BESIDE, "1");
        }
        if suite.package == "cdc-relay"
            && suite.kind == Kind::Integration
            && std::env::var_os("RUST_TEST_THREADS").is_none()
        {
            command.env("RUST_TEST_THREADS", RELAY_TEST_THREADS);
        }
        let totals = shown(command, &suite.name(), SILENCE_MAX)?;
        say(&format!("{:<22} {totals}, {:.0} s", suite.name(), began.elapsed().as_secs_f64()));
        Ok(totals)
    }
}

/// Each of these with these arguments.
pub fn runs(suites: Vec<Suite>, arguments: &[&str]) -> Vec<Run> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    suites.into_iter().map(|suite| Run { suite, arguments: arguments.clone(), is_beside: false }).collect()
}

/// The variable by which a test program knows that others use the stack too.
const BESIDE: &str = "STACK_TEST_BESIDE";

/// Where the servers of a stack are, as in `.stack/env`.
type Variables = BTreeMap<&'static str, String>;

/// The fields of cargo's messages (`--message-format json`) that name a built program.
#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

impl Suite {
    /// The test program that a message of cargo names; none for other messages.
    fn of_message(line: &str) -> Option<Self> {
        let message: Message = serde_json::from_str(line).ok()?;
        let (target, folder) = (message.target?, message.manifest_path?.parent()?.to_owned());
        let kind = if target.kind.iter().any(|kind| kind == "test") { Kind::Integration } else { Kind::Unit };
        let package = folder.file_name()?.to_str()?.to_owned();
        let program = message.executable.filter(|_| message.profile.is_some_and(|profile| profile.test))?;
        Some(Self { package, target: target.name, kind, program, folder })
    }

    fn name(&self) -> String {
        if self.target == self.package.replace('-', "_") || self.target == self.package {
            return self.package.clone();
        }
        format!("{} {}", self.package, self.target)
    }

    /// The tests of the whole, from outside.
    pub fn is_whole(&self) -> bool {
        self.package == "e2e" && self.target == "it"
    }
}

/// Builds test programs, and the programs that they start.
///
/// # Errors
/// When something does not compile; the compiler has said why.
pub fn build(layout: &Layout, arguments: &[&str], priority: Priority) -> Result<Vec<Suite>> {
    let mut found = Vec::new();
    Progress::default().step("build", |step| {
        let mut command = workspace::command_with(layout, "cargo", priority);
        command
            .args(["test", "--no-run", "--release"])
            .args(arguments)
            .args(["--message-format", "json-render-diagnostics"]);
        let messages = workspace::cargo(layout, command, "build-tests", step)?;
        found = messages.lines().filter_map(Suite::of_message).collect();
        ensure!(!found.is_empty(), "cargo built no test program");
        Ok(format!("{} test programs", found.len()))
    })?;
    Ok(found)
}

/// Runs every lane at the same time, the programs of a lane one after the other.
///
/// # Errors
/// When the stack's addresses are needed and cannot be read; then nothing has run.
pub fn run(layout: &Layout, lanes: Vec<Vec<Run>>, priority: Priority) -> Result<Totals> {
    // Unit tests need no stack: there may be what is left of one whose folder was removed, which has no secrets.
    let needs_stack = lanes.iter().flatten().any(|run| run.suite.kind == Kind::Integration);
    // Once, before the lanes: secrets that are missing are made.
    let variables = if needs_stack { environment::variables(layout)? } else { Variables::new() };
    let lane = |runs: Vec<Run>| {
        let mut totals = Totals::default();
        for run in runs {
            totals.all(run.start(layout, &variables, priority).with_context(|| run.suite.name()));
        }
        totals
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = lanes.into_iter().map(|runs| scope.spawn(|| lane(runs))).collect();
        let mut totals = Totals::default();
        for lane in lanes {
            totals.all(lane.join().map_err(|_| anyhow!("a lane of tests panicked")));
        }
        Ok(totals)
    })
}

fn shown(mut command: Command, name: &str, silence_max: Duration) -> Result<Totals> {
    let mut process =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start it")?;
    let mut reader = Reader::default();
    let lines = lines(process.stdout.take().context("it has no output")?);
    loop {
        match lines.recv_timeout(silence_max) {
            Ok(line) => {
                reader.line(&line);
                if !line.is_empty() {
                    say(&format!("{name:<22} {line}"));
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            // What it has started may keep its output open, so nothing more of it is read.
            Err(RecvTimeoutError::Timeout) => {
                process.kill().context("it hangs, and cannot be ended")?;
                reader.hung(silence_max);
                break;
            }
        }
    }
    Ok(reader.totals(name, process.wait()?))
}

/// The lines of a program's output, until it closes that.
fn lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        // A test may print anything.
        for line in BufReader::new(output).lines().map_while(|line| match line {
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Some(String::new()),
            line => line.ok(),
        }) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, silence_max: Duration) -> Totals {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        shown(command, "saga it", silence_max).unwrap()
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_its_tests_are_named() {
        // A process that the test has started goes on, and keeps the output open.
        let script = "echo 'test a::ends ... ok'
            echo 'test b::hangs has been running for over 60 seconds'
            echo 'test c::ends has been running for over 60 seconds'
            echo 'test c::ends ... ok'
            sleep 30 & sleep 30";
        let began = Instant::now();
        let totals = shell(script, Duration::from_millis(300));
        assert!(began.elapsed() < Duration::from_secs(20), "it was waited for");
        assert_eq!(totals.failed(), 1);
        let failure = &totals.failures()[0];
        assert!(failure.contains("b::hangs") && !failure.contains("ends"), "{failure}");
    }

    #[test]
    fn a_program_that_goes_on_printing_is_left_alone() {
        let script = r"for line in 1 2 3 4 5 6; do printf '\377 line\n'; sleep 0.2; done
            echo 'test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s'";
        assert_eq!(shell(script, Duration::from_secs(1)).to_string(), "2 passed, 0 failed");
    }

    #[test]
    fn cargo_names_test_programs_among_other_things() {
        let message = |kind: &str, name: &str, test: bool, executable: &str| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/balance-svc/Cargo.toml","target":{{"kind":["{kind}"],
                "name":"{name}"}},"profile":{{"test":{test}}},"executable":{executable}}}"#
            )
        };
        let suite = Suite::of_message(&message("test", "it", true, r#""/w/target/it-1""#)).unwrap();
        assert_eq!((suite.name().as_str(), suite.kind), ("balance-svc it", Kind::Integration));
        assert_eq!(suite.folder, PathBuf::from("/w/balance-svc"));
        let suite = Suite::of_message(&message("lib", "balance_svc", true, r#""/w/target/b-1""#)).unwrap();
        assert_eq!((suite.name().as_str(), suite.kind), ("balance-svc", Kind::Unit));
        for other in [
            message("bin", "balance-svc", false, r#""/w/target/balance-svc""#),
            message("lib", "balance_svc", false, "null"),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
            "no message".to_owned(),
        ] {
            assert_eq!(Suite::of_message(&other), None, "{other}");
        }
    }
}
