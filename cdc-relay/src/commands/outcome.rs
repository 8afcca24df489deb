//! Says how a command ended.

/// How a command ended that could do its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Done; the answer is good.
    Fine,
    /// Done; the answer is bad.
    Bad,
}

/// Why a command could not do its work.
#[derive(Debug)]
pub enum Failure {
    /// Its arguments, its environment or its routes file are not usable; nothing was opened.
    Usage(anyhow::Error),
    Failed(anyhow::Error),
}

pub type Outcome = Result<Ending, Failure>;

impl Failure {
    pub fn usage(problem: String) -> Failure {
        Failure::Usage(anyhow::Error::msg(problem))
    }

    /// The error alone, where no process ends with it.
    pub fn into_error(self) -> anyhow::Error {
        match self {
            Failure::Usage(error) | Failure::Failed(error) => error,
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

/// The exit code of an outcome, as `--help` lists them.
pub fn code(outcome: &Outcome) -> u8 {
    match outcome {
        Ok(Ending::Fine) => 0,
        Ok(Ending::Bad) => 1,
        Err(Failure::Failed(_)) => 2,
        Err(Failure::Usage(_)) => USAGE,
    }
}

/// `EX_USAGE`.
pub const USAGE: u8 = 64;
