//! Quotes arguments for commands that are printed to be run in a shell.

/// One argument of a command line, in quotes where the shell would read it as anything else.
pub fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_argument_back() {
        for (text, written) in [
            ("orders", "orders"),
            ("", "''"),
            ("two words", "'two words'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("a;b", "'a;b'"),
            ("\"q\"", "'\"q\"'"),
        ] {
            assert_eq!(quote(text), written);
        }
    }
}
