//! Parses the file of properties.
//!
//! * A wrong line is refused with its number.
//! * No error and no debug output contains a value, which may be a password.

use std::collections::BTreeMap;
use std::fmt;

use rdkafka::ClientConfig;

/// Prefixes of the properties of connections, which the file may contain.
const PREFIXES: [&str; 7] =
    ["security.", "sasl.", "ssl.", "socket.", "reconnect.", "broker.address.", "https.ca."];
const NAMES: [&str; 6] = [
    "bootstrap.servers",
    "client.id",
    "client.rack",
    "client.dns.lookup",
    "connections.max.idle.ms",
    "enable.ssl.certificate.verification",
];

/// Properties of connections. Prints their names only.
#[derive(Clone, Default)]
pub struct Properties(BTreeMap<String, String>);

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Properties {
    /// # Errors
    /// When the file cannot be read, or a line of it is not usable: the text says which and why.
    pub fn read(file: &str) -> Result<Self, String> {
        let text = std::fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))?;
        Self::parse(file, &text)
    }

    /// Parses the text of the file.
    ///
    /// # Errors
    /// As [`Properties::read`].
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        let mut properties = BTreeMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refused = |why: String| format!("{file}, line {}: {why}", number + 1);
            let (key, value) = pair(line).map_err(refused)?;
            if properties.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(refused(format!("`{key}` is given twice; remove one of the lines")));
            }
        }
        Ok(Self(properties))
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The key and the value of a line. The errors contain neither the line nor the value: either may be a password.
fn pair(line: &str) -> Result<(&str, &str), String> {
    let (key, value) =
        line.split_once('=').ok_or("is not of the form key=value; write one property a line")?;
    let (key, value) = (key.trim(), value.trim());
    if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'.') || key.is_empty() {
        return Err(
            "does not begin with the name of a property of librdkafka, such as sasl.username".to_owned()
        );
    }
    if key == "sasl.jaas.config" {
        return Err(
            "`sasl.jaas.config` is a property of Kafka's Java clients; give sasl.username and sasl.password instead"
                .to_owned(),
        );
    }
    if !NAMES.contains(&key) && !PREFIXES.iter().any(|prefix| key.starts_with(prefix)) {
        return Err(format!(
            "`{key}` is not about the connection, and the program sets it itself; remove the line"
        ));
    }
    // The text of librdkafka contains the value.
    match ClientConfig::new().set(key, value).create_native_config() {
        Ok(_) => Ok((key, value)),
        Err(error) if error.to_string().contains("No such configuration property") => {
            Err(format!("librdkafka has no property `{key}`; check its spelling"))
        }
        Err(_) => {
            Err(format!("`{key}` cannot have this value; librdkafka's CONFIGURATION.md lists its values"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_comments_and_blanks() {
        let text = "# admin\n\n bootstrap.servers = a:1,b:2 \r\nsasl.password=a=b#c\n  # sasl.username=x\n";
        let properties = Properties::parse("f", text).unwrap();
        let found: Vec<_> = properties.iter().collect();
        assert_eq!(found, [("bootstrap.servers", "a:1,b:2"), ("sasl.password", "a=b#c")]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_line_and_without_its_value() {
        for (line, why) in [
            ("hunter2", "is not of the form"),
            ("hunter2=", "does not begin with the name"),
            ("=hunter2", "does not begin with the name"),
            ("Pass word=hunter2", "does not begin with the name"),
            ("sasl.pasword=hunter2", "has no property `sasl.pasword`"),
            ("security.protocol=hunter2", "`security.protocol` cannot have this value"),
            ("sasl.jaas.config=hunter2", "Java"),
            ("acks=hunter2", "`acks` is not about the connection"),
            ("group.id=hunter2", "`group.id` is not about the connection"),
            ("enable.idempotence=hunter2", "not about the connection"),
            ("transactional.id=hunter2", "not about the connection"),
        ] {
            let said = Properties::parse("f", &format!("# one\n{line}\n")).unwrap_err();
            assert!(said.starts_with("f, line 2: ") && said.contains(why), "{line}: {said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        let said = Properties::parse("f", "sasl.username=a\nsasl.username=b\n").unwrap_err();
        assert_eq!(said, "f, line 2: `sasl.username` is given twice; remove one of the lines");
        assert!(Properties::read("/nowhere").unwrap_err().contains("cannot read /nowhere"));
    }
}
