//! The command line of a service that can recover its database: without a command it serves.

use clap::{ArgMatches, Args, Command, CommandFactory, Error, FromArgMatches, Parser};

use super::Settings;

const RECOVER: &str = "recover";
const ABOUT: &str = "Make the rows again that a restored database lacks, and open the database";

/// What a service was started for. `C` is its configuration, which `recover` does not need.
// No Debug: it would print passwords.
pub enum Program<C> {
    Serve(Box<C>),
    Recover(Box<Settings>),
}

impl<C: Parser> Parser for Program<C> {}

impl<C: CommandFactory> CommandFactory for Program<C> {
    fn command() -> Command {
        with_recover(C::command())
    }

    fn command_for_update() -> Command {
        with_recover(C::command_for_update())
    }
}

fn with_recover(command: Command) -> Command {
    let recover = Settings::augment_args(Command::new(RECOVER).about(ABOUT));
    command.subcommand(recover).subcommand_negates_reqs(true)
}

impl<C: FromArgMatches> FromArgMatches for Program<C> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        match matches.subcommand_matches(RECOVER) {
            Some(matches) => Ok(Self::Recover(Box::new(Settings::from_arg_matches(matches)?))),
            None => Ok(Self::Serve(Box::new(C::from_arg_matches(matches)?))),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Config {
        #[arg(long)]
        listen_addr: String,
    }

    #[test]
    fn a_service_serves_without_a_command() {
        let parsed = |flags: &[&str]| Program::<Config>::try_parse_from(flags);
        let Ok(Program::Serve(config)) = parsed(&["svc", "--listen-addr=a"]) else { panic!() };
        assert_eq!(config.listen_addr, "a");
        assert!(parsed(&["svc"]).is_err(), "what serving requires is required");
        let recover =
            ["svc", "recover", "--operator=ada", "--reason=r", "--database-url=u", "--kafka-brokers=h:1"];
        let Ok(Program::Recover(settings)) = parsed(&recover) else { panic!() };
        assert_eq!((settings.operator.as_str(), settings.dry_run), ("ada", false));
        assert!(parsed(&recover[..3]).is_err());
        Program::<Config>::command().debug_assert();
    }
}
