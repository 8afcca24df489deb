use std::path::PathBuf;

use super::*;

/// The content of the file that a case has.
enum Holding {
    Text(&'static [u8]),
    /// The path leads nowhere.
    Missing,
}
use Holding::{Missing, Text};

/// NAME, the file of NAME_FILE, and what comes of them: the secret, nothing, or the words of the error.
type Case = (Option<&'static str>, Option<Holding>, Result<Option<&'static str>, &'static str>);

const CASES: [Case; 13] = [
    (None, None, Ok(None)),
    (Some(""), None, Ok(None)),
    (Some("variable"), None, Ok(Some("variable"))),
    (None, Some(Text(b"file")), Ok(Some("file"))),
    (None, Some(Text(b"file\n")), Ok(Some("file"))),
    (None, Some(Text(b"file\r\n")), Ok(Some("file"))),
    (None, Some(Text(b" file \n")), Ok(Some(" file "))),
    (Some(""), Some(Text(b"file")), Ok(Some("file"))),
    (Some("variable"), Some(Text(b"file")), Err("SECRET and SECRET_FILE are both set")),
    (Some("variable"), Some(Missing), Err("SECRET and SECRET_FILE are both set")),
    (None, Some(Missing), Err("SECRET_FILE: cannot read")),
    (None, Some(Text(b"\n")), Err("is empty")),
    (None, Some(Text(b"swordfish\xff")), Err("is no UTF-8")),
];

#[derive(Parser)]
struct Config {
    #[arg(long, env = "SECRET", hide_env_values = true)]
    secret: String,
    #[arg(long, env = "OTHER", hide_env_values = true)]
    other: Option<u16>,
    #[arg(long, env = "OPEN")]
    open: Option<String>,
    #[arg(long)]
    count: Option<u16>,
    #[command(subcommand)]
    command: Option<Below>,
}

#[derive(clap::Subcommand)]
enum Below {
    Run {
        #[arg(long, env = "DEEP", hide_env_values = true)]
        deep: Option<String>,
        #[arg(long, env = "DEEPER", hide_env_values = true)]
        deeper: Option<u16>,
    },
}

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("secret-files-{name}-{}", std::process::id()))
}

/// An environment in which SECRET and SECRET_FILE are as in this case.
fn environment(
    name: &str,
    variable: Option<&'static str>,
    file: Option<&Holding>,
) -> Vec<(&'static str, OsString)> {
    let path = path(name);
    let mut all: Vec<_> = variable.map(|text| ("SECRET", text.into())).into_iter().collect();
    match file {
        Some(Text(content)) => std::fs::write(&path, content).unwrap(),
        Some(Missing) => {}
        None => return all,
    }
    all.push(("SECRET_FILE", path.into()));
    all
}

fn look(all: &[(&'static str, OsString)]) -> impl Fn(&str) -> Option<OsString> {
    move |name| Some(all.iter().find(|(known, _)| *known == name)?.1.clone())
}

fn parsed(arguments: &[&str], all: &[(&'static str, OsString)]) -> Result<Config, String> {
    let arguments = ["program"].iter().chain(arguments).map(OsString::from).collect();
    parse(arguments, &look(all)).map_err(|error| error.to_string())
}

#[test]
fn a_secret_has_one_source() {
    for (at, (variable, file, expected)) in CASES.iter().enumerate() {
        let all = environment(&format!("table-{at}"), *variable, file.as_ref());
        let read = of_file("SECRET", &look(&all)).map(|text| {
            text.or_else(|| given("SECRET", &look(&all)).and_then(|text| text.into_string().ok()))
        });
        match (read, expected) {
            (Ok(read), Ok(expected)) => assert_eq!(read.as_deref(), *expected, "case {at}"),
            (Err(error), Err(words)) => {
                let said = format!("{error:#}");
                assert!(said.contains(words) && said.contains("SECRET_FILE"), "case {at}: {said}");
                assert!(!said.contains("swordfish") && !said.contains("variable;"), "case {at}: {said}");
            }
            (read, expected) => panic!("case {at}: {read:?}, not {expected:?}"),
        }
    }
}

#[test]
fn an_option_takes_its_secret_from_the_file() {
    let all = environment("option", Some(""), Some(&Text(b"swordfish\n")));
    assert_eq!(parsed(&[], &all).unwrap().secret, "swordfish", "an empty variable is none");
    assert_eq!(parsed(&["--secret", "flag"], &all).unwrap().secret, "flag", "a flag goes before");
    let both = environment("both", Some("variable"), Some(&Text(b"swordfish\n")));
    let said = parsed(&[], &both).map(drop).unwrap_err();
    assert!(said.contains("SECRET and SECRET_FILE are both set") && !said.contains("swordfish"), "{said}");
}

#[test]
fn an_option_of_a_subcommand_does_too() {
    let mut all = environment("below", None, Some(&Text(b"swordfish")));
    std::fs::write(path("deep"), "trout").unwrap();
    all.push(("DEEP_FILE", path("deep").into()));
    let config = parsed(&["run"], &all).unwrap();
    assert!(matches!(config.command, Some(Below::Run { deep: Some(deep), .. }) if deep == "trout"));
    all.last_mut().unwrap().1 = path("nowhere").into();
    let said = parsed(&["run"], &all).map(drop).unwrap_err();
    assert!(said.contains("DEEP_FILE: cannot read"), "{said}");
}

#[test]
fn a_secret_that_is_not_usable_is_not_shown_and_another_value_is() {
    let all = environment("unusable", None, Some(&Text(b"x")));
    std::fs::write(path("number"), "swordfish").unwrap();
    let with = |name| {
        let file = [(name, OsString::from(path("number")))];
        all.iter().cloned().chain(file).collect::<Vec<_>>()
    };
    let refused = |arguments: &[&str], all: &[_]| parsed(arguments, all).map(drop).unwrap_err();
    for (option, said) in [
        ("--other", refused(&["--other", "swordfish"], &all)),
        ("--other", refused(&[], &with("OTHER_FILE"))),
        ("--deeper", refused(&["run", "--deeper", "swordfish"], &all)),
        ("--deeper", refused(&["run"], &with("DEEPER_FILE"))),
    ] {
        assert!(said.contains(option) && !said.contains("swordfish"), "{said}");
    }
    let said = refused(&["--other="], &all);
    assert!(said.contains("--other") && !said.contains("not shown"), "{said}");
    let said = refused(&["--count", "harbour"], &all);
    assert!(said.contains("'harbour' for '--count"), "{said}");
}

#[test]
fn what_is_no_secret_is_given_by_its_variable_only() {
    let mut all = environment("open", None, Some(&Text(b"swordfish")));
    all.push(("OPEN_FILE", path("nowhere").into()));
    assert_eq!(parsed(&[], &all).unwrap().open, None);
}

#[test]
fn the_help_shows_no_secret() {
    let all = environment("help", None, Some(&Text(b"swordfish")));
    let said = parsed(&["--help"], &all).map(drop).unwrap_err();
    assert!(said.contains("--secret") && !said.contains("swordfish"), "{said}");
}

#[test]
fn whoever_compares_goes_by_what_the_file_meant_last() {
    let path = path("live");
    std::fs::write(&path, "1\n").unwrap();
    let secret = Live::<u32>::new(&take("SECRET_FILE", &path).unwrap()).unwrap();
    let copy = secret.clone();
    let after = |text: &str| {
        std::fs::write(&path, text).unwrap();
        assert_eq!(secret.current(), copy.current());
        *secret.current()
    };
    assert_eq!([after("1"), after("2\n"), after("no number"), after("3"), after("")], [1, 2, 2, 3, 3]);
    std::fs::remove_file(&path).unwrap();
    // Not the one of the start, which was withdrawn.
    assert_eq!(*secret.current(), 3);
    assert_eq!(*Live::<u32>::new("7").unwrap().current(), 7, "of a variable");
    assert!(Live::<u32>::new("no number").is_err());
}

#[test]
fn whoever_connects_gets_the_secret_as_the_file_has_it_now() {
    let path = path("current");
    std::fs::write(&path, "herring\n").unwrap();
    let at_start = take("SECRET_FILE", &path).unwrap();
    assert_eq!((current(&at_start), origin(&at_start)), ("herring".to_owned(), Some(path.clone())));
    std::fs::write(&path, "haddock\n").unwrap();
    assert_eq!(current(&at_start), "haddock");
    // While it is being replaced the last one that is known has to do.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(current(&at_start), "herring");
    assert_eq!((current("of a variable"), origin("of a variable")), ("of a variable".to_owned(), None));
}
