//! Writes documents and parked messages, in bulk requests.
//!
//! * An external version that is not higher is a conflict, and a conflict is done.
//! * The server may refuse a whole request because of one document: by its id, by its version, by its size. The request is
//!   then halved until that document is alone.
//! * Each index is written by its write alias, which goes with it: no request makes an index.

use anyhow::{Context, Result, anyhow, ensure};
use saga::parked::Parked;
use saga::search_index::{Body, Method, SearchError, write_alias};
use serde_json::{Value, json};

use super::Store;
use crate::events::Document;

/// What is wrong with a document rather than with the server.
const DOCUMENT_ERRORS: [&str; 3] =
    ["mapper_parsing_exception", "document_parsing_exception", "illegal_argument_exception"];
/// The statuses by which a whole request is refused for its content.
const CONTENT_STATUSES: [u16; 2] = [400, 413];
/// Of each text of a parked message so much is kept, so that no message is too large to be parked. Its record has it all.
const TEXT_BYTES_MAX: usize = 256 * 1024;

/// What became of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteOutcome {
    Applied,
    /// The index has this version, or a higher one.
    Already,
    /// It cannot be indexed, ever; the server's name of the error.
    Refused(String),
}

impl Store {
    /// Writes documents into the index of this name; the outcomes are in their order.
    ///
    /// # Errors
    /// When the server does not answer, or could not write some of them now. Writing all of them again does no harm.
    pub async fn write(&self, index: &str, documents: &[&Document]) -> Result<Vec<WriteOutcome>> {
        let operation = |document: &&Document| {
            let Document { id, routing, version, source } = document;
            let action = json!({"index": {"_id": id, "routing": routing, "version": version, "version_type": "external"}});
            lines(&action, source)
        };
        let operations: Vec<String> = documents.iter().map(operation).collect();
        self.outcomes(index, &operations).await
    }

    /// Keeps messages that cannot be indexed. Parking a message twice changes nothing.
    ///
    /// # Errors
    /// When the server does not answer, or could not write some of them now.
    pub async fn park(&self, parked: &[Parked]) -> Result<()> {
        if parked.is_empty() {
            return Ok(());
        }
        // It may be gone by now.
        self.make_parked_index().await?;
        let operation = |message: &Parked| {
            lines(&json!({"index": {"_id": message.parked_id}}), &parked_document(message).to_string())
        };
        let operations: Vec<String> = parked.iter().map(operation).collect();
        let outcomes = self.outcomes(&self.index.parked_index(), &operations).await?;
        for (message, outcome) in parked.iter().zip(outcomes) {
            let id = &message.parked_id;
            ensure!(outcome == WriteOutcome::Applied, "the message {id} cannot be parked: {outcome:?}");
            // The reason quotes the message, which holds personal data.
            tracing::error!(
                id,
                "a message cannot be indexed and is parked; its document in the index of parked messages has the reason"
            );
        }
        Ok(())
    }

    /// The outcome of each operation, in their order.
    async fn outcomes(&self, index: &str, operations: &[String]) -> Result<Vec<WriteOutcome>> {
        let mut outcomes = Vec::with_capacity(operations.len());
        // The last is the next.
        let mut parts = vec![operations];
        while let Some(part) = parts.pop() {
            match self.bulk(index, part).await {
                Ok(items) => {
                    for item in &items {
                        outcomes.push(outcome(item)?);
                    }
                }
                Err(SearchError::Refused { status, kind }) if CONTENT_STATUSES.contains(&status.as_u16()) => {
                    if part.len() == 1 {
                        outcomes.push(WriteOutcome::Refused(format!("{} {kind}", status.as_u16())));
                    } else {
                        let (first, rest) = part.split_at(part.len() / 2);
                        parts.extend([rest, first]);
                    }
                }
                Err(error) => return Err(error).with_context(|| format!("cannot write to {index}")),
            }
        }
        Ok(outcomes)
    }

    /// The results of a bulk request, one for each operation.
    async fn bulk(&self, index: &str, operations: &[String]) -> Result<Vec<Value>, SearchError> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        let alias = write_alias(index);
        let path = format!("/{alias}/_bulk?require_alias=true&filter_path=items.*.status,items.*.error.type");
        let mut answer = self.index.send(Method::POST, &path, Body::Lines(operations.concat())).await?;
        results(&mut answer, operations.len()).map_err(SearchError::Away)
    }
}

fn lines(action: &Value, content: &str) -> String {
    format!("{action}\n{content}\n")
}

fn parked_document(message: &Parked) -> Value {
    let Parked { parked_id: _, source, message_key, event_type, headers, body, reason } = message;
    let body = String::from_utf8_lossy(body);
    // An object of texts; too large, it is a text.
    let headers = match headers.to_string() {
        text if text.len() > TEXT_BYTES_MAX => Value::from(beginning(&text)),
        _ => headers.clone(),
    };
    json!({
        "source": source,
        "message_key": message_key.as_deref().map(beginning),
        "type": event_type.as_deref().map(beginning),
        "headers": headers,
        "body": beginning(&body),
        "reason": beginning(reason),
    })
}

fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

fn results(answer: &mut Value, operations: usize) -> Result<Vec<Value>> {
    let Some(Value::Array(items)) = answer.get_mut("items").map(Value::take) else {
        return Err(anyhow!("its answer to a bulk request has no items"));
    };
    let found = items.len();
    ensure!(found == operations, "its answer to {operations} operations has {found} results");
    let result = |mut item: Value| item.get_mut("index").map(Value::take).unwrap_or_default();
    Ok(items.into_iter().map(result).collect())
}

/// # Errors
/// When the server could not write the document now.
fn outcome(item: &Value) -> Result<WriteOutcome> {
    let kind = item.pointer("/error/type").and_then(Value::as_str).unwrap_or("no error named");
    match item["status"].as_u64() {
        Some(200 | 201) => Ok(WriteOutcome::Applied),
        Some(409) => Ok(WriteOutcome::Already),
        Some(400) if DOCUMENT_ERRORS.contains(&kind) => Ok(WriteOutcome::Refused(kind.to_owned())),
        status => anyhow::bail!("the search index did not write a document, {status:?}: {kind}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conflict_is_done_a_bad_document_is_refused_and_everything_else_is_tried_again() {
        let item = |status: u64, kind: &str| json!({"status": status, "error": {"type": kind}});
        assert_eq!(outcome(&json!({"status": 201})).unwrap(), WriteOutcome::Applied);
        assert_eq!(outcome(&json!({"status": 200})).unwrap(), WriteOutcome::Applied);
        assert_eq!(outcome(&item(409, "version_conflict_engine_exception")).unwrap(), WriteOutcome::Already);
        let refused = WriteOutcome::Refused("mapper_parsing_exception".to_owned());
        assert_eq!(outcome(&item(400, "mapper_parsing_exception")).unwrap(), refused);
        for (status, kind) in [
            (400, "index_closed_exception"),
            (403, "cluster_block_exception"),
            (404, "index_not_found_exception"),
            (429, "rejected_execution_exception"),
            (503, "unavailable_shards_exception"),
        ] {
            assert!(outcome(&item(status, kind)).is_err(), "{status} {kind}");
        }
        assert!(outcome(&json!({})).is_err());
    }

    #[test]
    fn an_answer_has_a_result_for_each_operation() {
        let answer = || json!({"items": [{"index": {"status": 201}}, {"index": {"status": 409}}]});
        assert_eq!(results(&mut answer(), 2).unwrap(), [json!({"status": 201}), json!({"status": 409})]);
        for operations in [1, 3] {
            assert!(results(&mut answer(), operations).is_err(), "{operations}");
        }
        for broken in [json!({}), json!({"items": null}), json!([])] {
            assert!(results(&mut broken.clone(), 1).is_err(), "{broken}");
        }
    }

    #[test]
    fn no_message_is_too_large_to_be_parked() {
        let long = "\u{e9}\0".repeat(1_000_000);
        let message = |text: &str| Parked {
            parked_id: "T/0/1".to_owned(),
            source: "T".to_owned(),
            message_key: Some(text.to_owned()),
            event_type: Some(text.to_owned()),
            headers: json!({ text: text }),
            body: text.as_bytes().to_vec(),
            reason: text.to_owned(),
        };
        // A control character takes six bytes in JSON.
        let size = parked_document(&message(&long)).to_string().len();
        assert!(size < 5 * 6 * TEXT_BYTES_MAX + 1_000, "{size}");
        let small = parked_document(&message("a"));
        assert_eq!(
            small,
            json!({"source": "T", "message_key": "a", "type": "a", "headers": {"a": "a"}, "body": "a", "reason": "a"})
        );
    }
}
