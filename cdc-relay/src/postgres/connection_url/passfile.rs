//! Reads libpq's password file.
//!
//! * A line is `host:port:database:user:password`; the first that matches counts.
//! * A file that others may read is not used, and a warning says so.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// The login that needs a password.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// `localhost` for a local socket.
    pub host: &'a str,
    pub port: &'a str,
    pub database: &'a str,
    pub user: &'a str,
}

/// The password of the login. None: there is no usable file, or no line matches.
pub fn password(named: Option<&str>, home: Option<String>, login: Login<'_>) -> Option<String> {
    let path = named.map(PathBuf::from).or_else(|| Some(PathBuf::from(home?).join(".pgpass")))?;
    let shown = path.display();
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!("the password file {shown} is not used: {error}");
            return None;
        }
    };
    if !metadata.is_file() {
        tracing::warn!("the password file {shown} is not used: it is no plain file");
        return None;
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        tracing::warn!("the password file {shown} is not used: it may be read by others; chmod 600 {shown}");
        return None;
    }
    match std::fs::read_to_string(&path) {
        Ok(text) => find(&text, login),
        Err(error) => {
            tracing::warn!("the password file {shown} is not used: {error}");
            None
        }
    }
}

fn find(text: &str, login: Login<'_>) -> Option<String> {
    text.lines().find_map(|line| line_password(line, login))
}

fn line_password(line: &str, login: Login<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for wanted in [login.host, login.port, login.database, login.user] {
        let (field, after) = field(rest)?;
        if !(field.text == wanted || (field.text == "*" && !field.escaped)) {
            return None;
        }
        rest = after;
    }
    let mut password = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        password.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(password)
}

struct Field {
    text: String,
    escaped: bool,
}

/// The field before the next colon; a backslash escapes the next character.
fn field(text: &str) -> Option<(Field, &str)> {
    let mut field = Field { text: String::new(), escaped: false };
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            ':' => return Some((field, chars.as_str())),
            '\\' => {
                field.escaped = true;
                field.text.push(chars.next()?);
            }
            c => field.text.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_matching_line_has_the_password() {
        let text = "# comment:5432:d:u:no\n\nh:5432:other:u:no\nh:5432:d:\\*:no\nh:5432:*:u:it's\\: a\\\\b \nh:5432:d:u:late\n*:*:*:*:any";
        let login = Login { host: "h", port: "5432", database: "d", user: "u" };
        assert_eq!(find(text, login).as_deref(), Some("it's: a\\b "));
        assert_eq!(find(text, Login { host: "x", ..login }).as_deref(), Some("any"));
        assert_eq!(find("h:5432:d:u", login), None);
        assert_eq!(find("a\\:b:1:d:u:p", Login { host: "a:b", port: "1", ..login }).as_deref(), Some("p"));
    }
}
