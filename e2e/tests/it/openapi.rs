//! `docs/openapi.yaml` says what clients get: the operations, and the documents that are answered.
//!
//! Schemas are closed here: a member or a reason that they do not name is an error. As published they are open, since clients
//! ignore what they do not know.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use boon::{Compiler, Schemas};
use reqwest::{Method, Response};
use saga::fields::text_error;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::asyncapi::docs;
use crate::harness::{Harness, WAIT_TIMEOUT, get, http};
use crate::raw_http::request;

/// A name: nothing is ever fetched from there.
const ID: &str = "https://coro.example/openapi.yaml";
const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

pub struct OpenApi(pub Value);

impl OpenApi {
    pub fn read() -> Self {
        let text = fs::read_to_string(docs("openapi.yaml")).unwrap();
        let mut openapi = Self(serde_saphyr::from_str(&text).unwrap());
        let pattern = openapi.pattern_of_reasons();
        openapi.0["components"]["schemas"]["Reason"]["pattern"] = pattern.into();
        openapi
    }

    /// Codes of `reason`: those of payments that have ended, and those of unknown outcomes.
    pub fn reasons(&self) -> [BTreeSet<&str>; 2] {
        ["x-codes", "x-codes-of-unknown-outcomes"].map(|list| {
            let codes = self.0["components"]["schemas"]["Reason"][list].as_array().unwrap();
            codes.iter().map(|code| code.as_str().unwrap()).collect()
        })
    }

    fn pattern_of_reasons(&self) -> String {
        let [ends, causes] = self.reasons().map(|codes| Vec::from_iter(codes).join("|"));
        let causes = causes.replace("http_", "http_[0-9]{3}").replace("|void_|", "|");
        format!("^(({ends})(:.+)?|(void_)*({causes}))$")
    }

    /// Each path with its methods, as `Allow` lists them.
    fn operations(&self) -> Vec<(String, Vec<String>)> {
        let paths = self.0["paths"].as_object().unwrap();
        let operation = |(path, item): (&String, &Value)| {
            let methods = METHODS.iter().filter(|method| item.get(method).is_some());
            let mut methods: Vec<String> = methods.map(|method| method.to_uppercase()).collect();
            if methods.iter().any(|method| method == "GET") {
                methods.push("HEAD".to_owned());
            }
            methods.push("OPTIONS".to_owned());
            methods.sort_unstable();
            (path.clone(), methods)
        };
        paths.iter().map(operation).collect()
    }

    /// Each operation, as `GET /balance`, with each status that it answers.
    pub fn statuses(&self) -> BTreeSet<(String, String)> {
        let paths = self.0["paths"].as_object().unwrap().iter();
        let operations = paths.flat_map(|(path, item)| {
            let offered = METHODS.iter().filter_map(|method| Some((*method, item.get(method)?)));
            offered.map(move |(method, operation)| (format!("{} {path}", method.to_uppercase()), operation))
        });
        let statuses = operations.flat_map(|(name, operation)| {
            let responses = operation["responses"].as_object().unwrap().keys();
            responses.map(move |status| (name.clone(), status.clone()))
        });
        statuses.collect()
    }

    /// The pointer to the answer of an operation, wherever it stands.
    fn answer(&self, path: &str, method: &str, status: u16) -> String {
        let escaped = path.replace('~', "~0").replace('/', "~1");
        let pointer = format!("/paths/{escaped}/{method}/responses/{status}");
        let answer =
            self.0.pointer(&pointer).unwrap_or_else(|| panic!("{method} {path} answers no {status}"));
        match answer["$ref"].as_str() {
            Some(reference) => reference.trim_start_matches('#').to_owned(),
            None => pointer,
        }
    }

    /// The error of a body under the schema of its answer.
    fn error(&self, path: &str, method: &str, answer: &Answer) -> Option<String> {
        let pointer = self.answer(path, method, answer.status);
        let media = self.0.pointer(&pointer).unwrap()["content"].get(&answer.content_type);
        assert!(media.is_some(), "{method} {path} answers {} as {}", answer.status, answer.content_type);
        let pointer = format!("{pointer}/content/{}/schema", answer.content_type.replace('/', "~1"));
        // In a URI braces are encoded.
        let schema = format!("{ID}#{}", pointer.replace('{', "%7B").replace('}', "%7D"));
        let closed =
            json!({ "$id": "https://coro.example/closed", "$ref": schema, "unevaluatedProperties": false });
        let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
        compiler.enable_format_assertions();
        compiler.add_resource(ID, self.0.clone()).unwrap();
        compiler.add_resource("https://coro.example/closed", closed).unwrap();
        let compiled = compiler.compile("https://coro.example/closed", &mut schemas);
        let compiled = compiled.unwrap_or_else(|error| panic!("{error:#}"));
        schemas.validate(&answer.body, compiled).err().map(|error| error.to_string())
    }
}

struct Answer {
    status: u16,
    content_type: String,
    body: Value,
}

impl Answer {
    /// Also checks the headers that every answer has.
    async fn of(response: Response, what: &str) -> Self {
        let header = |name: &str| {
            let value = response.headers().get(name).unwrap_or_else(|| panic!("{what} has no {name}"));
            value.to_str().unwrap().to_owned()
        };
        assert!(!header("request-id").is_empty());
        assert_eq!(header("cache-control"), "no-store", "{what}");
        let (status, content_type) = (response.status().as_u16(), header("content-type"));
        let request_id = header("request-id");
        let body: Value = response.json().await.unwrap();
        if status >= 400 {
            assert_eq!(body["request_id"], request_id, "{what}: {body}");
        }
        Self { status, content_type, body }
    }
}

/// A client at the edge whose answers are held against the document.
struct Caller<'h> {
    harness: &'h Harness,
    openapi: OpenApi,
    http: reqwest::Client,
    user: Uuid,
}

impl<'h> Caller<'h> {
    fn new(harness: &'h Harness, user: Uuid) -> Self {
        Self { harness, openapi: OpenApi::read(), http: http(), user }
    }

    async fn call(&self, method: Method, path: &str, target: &str, body: Option<&Value>) -> Answer {
        let url = format!("{}{target}", self.harness.stack.edge_url);
        let mut request = self.http.request(method.clone(), url).header("x-user-id", self.user.to_string());
        if let Some(body) = body {
            request = request.json(body);
        }
        let what = format!("{method} {target}");
        let answer = Answer::of(request.send().await.unwrap(), &what).await;
        let error = self.openapi.error(path, &method.as_str().to_lowercase(), &answer);
        assert_eq!(error, None, "{what}: {} {}", answer.status, answer.body);
        answer
    }

    async fn get(&self, path: &str, target: &str) -> Answer {
        self.call(Method::GET, path, target, None).await
    }
}

#[tokio::test]
async fn every_operation_is_offered_and_no_other() {
    let harness = Harness::shared().await;
    for (path, methods) in OpenApi::read().operations() {
        let target = path.replace("{payment_id}", &Uuid::now_v7().to_string());
        let line = format!("OPTIONS {target} HTTP/1.1");
        let answer = request(&harness.stack.edge_url, &line, &[("host", "test")], "").await;
        assert_eq!(answer.allow(), methods, "{path}");
    }
}

#[tokio::test]
async fn the_document_is_served_as_it_is() {
    let harness = Harness::shared().await;
    for door in [&harness.stack.edge_url, &harness.stack.payments_url] {
        let answer = get(format!("{door}/openapi.yaml")).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/yaml");
        assert_eq!(answer.text().await.unwrap(), fs::read_to_string(docs("openapi.yaml")).unwrap());
    }
}

#[tokio::test]
async fn answers_are_as_described() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let caller = Caller::new(&harness, user);
    let order = harness.order(100, "described");
    let post = async |body: &Value| caller.call(Method::POST, "/payments", "/payments", Some(body)).await;
    let paid = post(&order).await;
    assert_eq!((paid.status, post(&order).await.status), (201, 201));
    assert_eq!(post(&harness.order(101, "described")).await.body["payment_id"], paid.body["payment_id"]);
    assert_eq!(post(&json!({"amount": "1"})).await.status, 400);
    let id = paid.body["payment_id"].as_str().unwrap();
    let one = "/payments/{payment_id}";
    assert_eq!(caller.get(one, &format!("/payments/{id}?wait=25000")).await.body["status"], "completed");
    assert_eq!(caller.get(one, &format!("/payments/{id}?wait=x")).await.status, 400);
    assert_eq!(caller.get(one, &format!("/payments/{}", Uuid::now_v7())).await.status, 404);
    let cancel = format!("/payments/{id}/cancel");
    assert_eq!(caller.call(Method::POST, "/payments/{payment_id}/cancel", &cancel, None).await.status, 409);
    assert_eq!(
        caller.get("/payments", "/payments?status=completed&limit=1").await.body["payments"][0]["payment_id"],
        id
    );
    assert_eq!(caller.get("/payments", "/payments?cursor=x&limit=0").await.status, 400);
    assert_eq!(caller.get("/balance", "/balance").await.body["available"], 900);
    let statement = caller.get("/balance/movements", "/balance/movements").await.body;
    assert_eq!(statement["movements"].as_array().unwrap().len(), 3, "{statement}");
    caller.get("/services", "/services").await;
    caller.get("/health", "/health").await;
}

/// The index has a payment a moment after its end.
#[tokio::test]
async fn searches_are_answered_as_described() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let caller = Caller::new(&harness, user);
    let search =
        async |query: &str| caller.get("/payments/search", &format!("/payments/search?{query}")).await;
    let payment_id = harness.client.pay(user, "0812-78", 100).await.unwrap().to_string();
    let began = Instant::now();
    let payment = loop {
        let page = search("q=elec+081278&status=completed&limit=1").await.body;
        if page["payments"][0]["payment_id"] == payment_id {
            break page["payments"][0].clone();
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "{page}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(payment["highlight"]["service_name"], "<em>Elec</em>tricity");
    let (number, nobody) = (search("q=0812").await.body, search("q=nobody").await.body);
    assert_eq!(number["payments"][0]["highlight"]["service_name"], Value::Null, "{number}");
    assert_eq!(nobody, json!({"payments": [], "next_cursor": null}));
    let refused = search("from=yesterday&cursor=x&limit=0").await;
    assert_eq!((refused.status, refused.body["errors"].as_array().unwrap().len()), (400, 4));
}

#[tokio::test]
async fn who_has_no_account_has_an_empty_statement_and_no_balance() {
    let harness = Harness::shared().await;
    let caller = Caller::new(&harness, Uuid::now_v7());
    assert_eq!(caller.get("/balance", "/balance").await.status, 404);
    let statement = caller.get("/balance/movements", "/balance/movements").await.body;
    assert_eq!(statement, json!({"movements": [], "next_cursor": null}));
}

/// For each character that there is: what the pattern takes the services take. They take more where their Unicode is newer.
#[test]
fn the_pattern_of_texts_is_the_rule_of_the_services() {
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    let mut compile = |id: &str, schema: Value| {
        compiler.add_resource(id, schema).unwrap();
        compiler.compile(id, &mut schemas).unwrap_or_else(|error| panic!("{error:#}"))
    };
    let text = OpenApi::read().0["components"]["schemas"]["VisibleText"].clone();
    let text = compile("https://coro.example/text", text);
    let unassigned = compile("https://coro.example/unassigned", json!({ "pattern": "^\\p{Cn}$" }));
    for c in '\0'..=char::MAX {
        let fits = |schema| schemas.validate(&json!(c.to_string()), schema).is_ok();
        let is_accepted = text_error(&c.to_string(), 1).is_none();
        assert!(fits(text) == is_accepted || is_accepted && fits(unassigned), "{:x}", u32::from(c));
    }
}

/// The two terminal states besides `completed` whose documents have more.
#[tokio::test]
async fn payments_that_end_otherwise_are_as_described() {
    let harness = Harness::shared().await;
    let user = harness.client.user_with(1_000).await.unwrap();
    let caller = Caller::new(&harness, user);
    for (client_number, amount, status, reason) in
        [("0812-decline", 100, "failed", "declined:"), ("0812", 5_000, "rejected", "insufficient_funds")]
    {
        let payment_id = harness.client.pay(user, client_number, amount).await.unwrap();
        harness.client.wait_for_end(user, payment_id, WAIT_TIMEOUT).await.unwrap();
        let payment = caller.get("/payments/{payment_id}", &format!("/payments/{payment_id}")).await.body;
        assert_eq!(payment["status"], status, "{payment}");
        assert!(payment["reason"].as_str().unwrap().starts_with(reason), "{payment}");
    }
    let statement = caller.get("/balance/movements", "/balance/movements").await.body;
    assert_eq!(statement["movements"][0]["kind"], "release", "{statement}");
}
