//! Writes the routes file of a test.

use super::Harness;

impl Harness {
    /// One table to one topic of two partitions; rows of kind `work` to a queue as well.
    pub fn default_routes(&self) -> String {
        let name = &self.name;
        format!(
            r#"
[relay]
state_topic = "{name}.state"
dead_letter_topic = "{name}.dead"

[[topics]]
name = "{name}.items"
partitions = 2

[[queues]]
name = "{name}.work"

[[sources]]
name = "it"
url = "${{IT_URL}}"
slot = "{name}"
publication = "events"
event_source = "/it"

[[sources.tables]]
name = "items"
key = "{{owner}}"
id = "it/items/{{owner}}/{{id}}/{{version}}"
subject = "{{id}}"
headers = {{ note = "{{note}}" }}

[[sources.tables.routes]]
topic = "{name}.items"
type = "item.{{kind}}.v1"

[[sources.tables.routes]]
queue = "{name}.work"
type = "item.work.v1"
when = {{ kind = ["work"] }}
headers = {{ at = "{{at}}" }}

[sources.tables.routes.body.payload]
owner = "{{owner}}"
amount = "{{amount}}"
"#
        )
    }

    /// Routes of one topic and one source; `relay` goes into its section, `tables` to the end.
    pub fn routes_of(&self, relay: &str, tables: &str) {
        let name = &self.name;
        self.routes(&format!(
            r#"
[relay]
state_topic = "{name}.state"
dead_letter_topic = "{name}.dead"
{relay}

[[topics]]
name = "{name}.items"

[[sources]]
name = "it"
url = "${{IT_URL}}"
slot = "{name}"
publication = "events"
event_source = "/it"

{tables}
"#
        ));
    }

    pub fn routes(&self, text: &str) {
        std::fs::write(self.folder.join("relay.toml"), text).expect("routes");
    }
}
