//! `docs/asyncapi.yaml` and the schemas of `docs/events`, as validators of records.
//!
//! * A record is valid if its topic is a channel, its type is a message of that channel, and its key, headers and value
//!   have that message's schemas.
//! * Schemas are closed here: a field or a header that they do not name is an error. As published they are open, since
//!   subscribers ignore what they do not know.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use boon::{Compiler, SchemaIndex, Schemas};
use coroctl::topics::Event;
use saga::contract::{
    BALANCE_TOPIC, ChargeResult, Envelope, EventType, LedgerEntry, PAYMENT_RESULT_TOPIC, PAYMENT_TOPIC,
    Payment, SERVICE_TOPIC, Service,
};
use serde_json::{Map, Value, json};

/// The beginning of every `$id`. It is a name: nothing is ever fetched from there.
const BASE: &str = "https://coro.example/";
/// The one message whose records have no type.
const DEAD_LETTER: &str = "dead-letter";

/// A path in the folder `docs`.
pub fn docs(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs").join(path)
}

/// The schemas of `docs/events`, by the name of their file.
pub fn event_schemas() -> BTreeMap<String, Value> {
    let paths = fs::read_dir(docs("events")).unwrap().map(|entry| entry.unwrap().path());
    let schema = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let schema = serde_json::from_str(&fs::read_to_string(&path).unwrap());
        (name, schema.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    };
    paths.map(schema).collect()
}

/// A message of a topic, with its traits.
pub struct Message {
    pub topic: String,
    pub name: String,
    pub definition: Value,
}

struct Validators {
    key: SchemaIndex,
    headers: SchemaIndex,
    payload: SchemaIndex,
}

pub struct AsyncApi {
    pub document: Value,
    schemas: Schemas,
    /// The schemas as they are published, by the name of their file.
    published: BTreeMap<String, SchemaIndex>,
    /// By topic and name of the message.
    validators: BTreeMap<(String, String), Validators>,
}

impl AsyncApi {
    pub fn read() -> Self {
        let text = fs::read_to_string(docs("asyncapi.yaml")).unwrap();
        let document: Value = serde_saphyr::from_str(&text).unwrap();
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        let mut schemas = Schemas::new();
        let events = event_schemas();
        for (name, schema) in &events {
            let id = format!("{BASE}events/{name}.json");
            assert_eq!(schema["$id"], id, "the $id of a schema is the name of its file");
            assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema", "{name}");
            compiler.add_resource(&id, schema.clone()).unwrap();
        }
        let published = events.into_keys().map(|name| {
            let compiled = compiler.compile(&format!("{BASE}events/{name}.json"), &mut schemas);
            (name, compiled.unwrap_or_else(|error| panic!("{error:#}")))
        });
        let published = published.collect();
        let mut asyncapi = Self { document, schemas, published, validators: BTreeMap::new() };
        for Message { topic, name, definition } in asyncapi.messages() {
            let mut part = |part: &str, schema: &Value| {
                let id = format!("{BASE}{topic}.{name}.{part}");
                let closed = json!({ "$id": id, "allOf": [schema], "unevaluatedProperties": false });
                compiler.add_resource(&id, closed).unwrap();
                let compiled = compiler.compile(&id, &mut asyncapi.schemas);
                compiled.unwrap_or_else(|error| panic!("{error:#}"))
            };
            let validators = Validators {
                key: part("key", &definition["bindings"]["kafka"]["key"]),
                headers: part("headers", &definition["headers"]),
                payload: part("payload", &definition["payload"]),
            };
            asyncapi.validators.insert((topic, name), validators);
        }
        asyncapi
    }

    /// Every message of every topic.
    pub fn messages(&self) -> Vec<Message> {
        let channels = self.document["channels"].as_object().unwrap().values();
        let topics = channels.filter(|channel| channel["bindings"].get("kafka").is_some());
        let messages = topics.flat_map(|channel| {
            let topic = text(&channel["address"]);
            let messages = channel["messages"].as_object().unwrap().values();
            messages.map(move |message| (topic, self.resolve(message)))
        });
        let message = |(topic, message): (&str, &Value)| {
            let mut definition = json!({});
            for trait_ in message["traits"].as_array().into_iter().flatten() {
                merge(&mut definition, self.resolve(trait_));
            }
            merge(&mut definition, message);
            Message { topic: topic.to_owned(), name: text(&message["name"]).to_owned(), definition }
        };
        messages.map(message).collect()
    }

    pub fn topics(&self) -> Vec<String> {
        let mut topics: Vec<String> = self.messages().into_iter().map(|message| message.topic).collect();
        topics.dedup();
        topics
    }

    /// The target of a reference inside of the document; anything else is its own.
    pub fn resolve<'v>(&'v self, value: &'v Value) -> &'v Value {
        match value.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#')) {
            Some(pointer) => {
                self.document.pointer(pointer).unwrap_or_else(|| panic!("#{pointer} leads nowhere"))
            }
            None => value,
        }
    }

    /// The errors of a value under a schema as it is published.
    pub fn published_error(&self, schema: &str, value: &Value) -> Option<String> {
        self.error(self.published[schema], value)
    }

    /// The errors of a record's value under the closed schema of a message.
    pub fn payload_error(&self, topic: &str, message: &str, value: &Value) -> Option<String> {
        self.error(self.validators[&(topic.to_owned(), message.to_owned())].payload, value)
    }

    fn error(&self, schema: SchemaIndex, value: &Value) -> Option<String> {
        self.schemas.validate(value, schema).err().map(|error| error.to_string())
    }

    /// Everything that is wrong with a record; nothing if it is valid.
    pub fn errors(&self, event: &Event) -> Vec<String> {
        let name = match event.event_type() {
            "" => DEAD_LETTER,
            name => name,
        };
        let Some(validators) = self.validators.get(&(event.topic.clone(), name.to_owned())) else {
            return vec![format!("{name} is no message of {}", event.topic)];
        };
        let headers = event.headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str())));
        let headers = Value::Object(headers.collect::<Map<_, _>>());
        let mut errors: Vec<String> = Vec::new();
        errors.extend(self.error(validators.key, &Value::from(event.key.as_str())));
        errors.extend(self.error(validators.headers, &headers));
        match event.json() {
            Ok(value) => errors.extend(self.error(validators.payload, &value)),
            Err(error) => errors.push(format!("{error:#}")),
        }
        if errors.is_empty() {
            errors.extend(contradiction(event));
        }
        errors
    }
}

/// How the parts of a record contradict each other, which no schema can say: key, id and subject are those of the value.
fn contradiction(event: &Event) -> Option<String> {
    if event.event_type() == "fraud.alert.v1" {
        let alert = event.json().ok()?;
        let agrees = alert["user_id"] == event.key && alert["payment_id"] == event.subject();
        return (!agrees).then(|| format!("key or subject are not those of {alert}"));
    }
    let Some(event_type) = EventType::parse(event.event_type()) else {
        let subject = event.subject();
        return (!subject.is_empty() && subject != event.key)
            .then(|| format!("{subject} under key {}", event.key));
    };
    let envelope = Envelope {
        event_type,
        topic: &event.topic,
        key: event.key.as_bytes(),
        id: Some(event.header("ce_id")),
        source: Some(event.header("ce_source")),
        subject: Some(event.subject()),
    };
    let read = match event_type.topic() {
        PAYMENT_TOPIC => envelope.read::<Payment>(&event.value).map(drop),
        BALANCE_TOPIC => envelope.read::<LedgerEntry>(&event.value).map(drop),
        PAYMENT_RESULT_TOPIC => envelope.read::<ChargeResult>(&event.value).map(drop),
        SERVICE_TOPIC => envelope.read::<Service>(&event.value).map(drop),
        other => panic!("{other} is no topic of the contract"),
    };
    read.err().map(|error| error.to_string())
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// As traits are merged: JSON Merge Patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (name, value) in patch {
                merge(target.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}
