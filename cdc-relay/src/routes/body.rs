//! Writes the JSON body of a message.
//!
//! * A body is compiled once per relation to a list of steps: literal text, and columns between it.
//! * Two members of an object never have the same name.

use std::collections::BTreeSet;

use crate::routes::json::{self, Form};
use crate::routes::problem::Problem;
use crate::routes::row::{Op, Row};
use crate::routes::scope::{Scope, column};
use crate::routes::template::{BoundTemplate, Template};
use crate::routes::{Leaf, Object, Route, Text, Toast};

#[derive(Debug, Clone)]
enum Step {
    Literal(Vec<u8>),
    /// A column in the JSON form of its type, or of its cast.
    Value {
        index: usize,
        form: Form,
    },
    /// A member that is left out where its value is unknown. `name` has the colon.
    Member {
        name: Vec<u8>,
        index: usize,
        form: Form,
    },
    /// A template as a JSON string; null if one of its columns is null.
    Text(BoundTemplate),
    /// The row before the change: null on an insert.
    Before(Body),
}

#[derive(Debug, Clone, Default)]
pub struct Body {
    steps: Vec<Step>,
}

impl Body {
    /// Binds the body of a route to the columns of a relation.
    pub fn bind(route: &Route, scope: &Scope<'_>) -> Result<Body, Problem> {
        let mut body = Body::default();
        match &route.body {
            Some(object) => body.object(object, scope)?,
            None if scope.deleted && route.before => {
                body.literal(b"{\"before\":");
                body.flat(route, scope)?;
                body.literal(b"}");
            }
            None => body.flat(route, scope)?,
        }
        if route.before && !scope.deleted {
            body.before(route, scope)?;
        }
        Ok(body)
    }

    /// Appends the body of this row. `scratch` is overwritten.
    #[inline]
    pub fn write(&self, row: &Row<'_>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Problem> {
        for step in &self.steps {
            match step {
                Step::Literal(text) => out.extend_from_slice(text),
                Step::Value { index, form } => match row.text(*index)? {
                    Some(text) => form.write(text, scratch, out)?,
                    None => out.extend_from_slice(b"null"),
                },
                Step::Member { name, index, form } => {
                    if !row.is_unknown(*index) {
                        if out.last() != Some(&b'{') {
                            out.push(b',');
                        }
                        out.extend_from_slice(name);
                        match row.text(*index)? {
                            Some(text) => form.write(text, scratch, out)?,
                            None => out.extend_from_slice(b"null"),
                        }
                    }
                }
                Step::Text(template) => {
                    scratch.clear();
                    if template.write(row, scratch)? {
                        json::string(scratch, out);
                    } else {
                        out.extend_from_slice(b"null");
                    }
                }
                Step::Before(body) => before(body, row, scratch, out)?,
            }
        }
        Ok(())
    }

    fn literal(&mut self, text: &[u8]) {
        if let Some(Step::Literal(last)) = self.steps.last_mut() {
            last.extend_from_slice(text);
        } else {
            self.steps.push(Step::Literal(text.to_vec()));
        }
    }

    /// `{"name":` or `,"name":`
    fn member(&mut self, first: bool, name: &str) {
        self.literal(if first { b"{" } else { b"," });
        self.literal(&colon(name));
    }

    fn flat(&mut self, route: &Route, scope: &Scope<'_>) -> Result<(), Problem> {
        let relation = scope.relation;
        let named = route.omit.iter().map(Text::get_ref).chain(route.rename.keys()).chain(route.cast.keys());
        for name in named {
            column(relation, name)?;
        }
        let omits_large = route.toast == Toast::Omit;
        let (mut first, mut names) = (true, BTreeSet::new());
        for (index, meta) in relation.columns.iter().enumerate() {
            let known = !scope.deleted || relation.known_when_deleted(index);
            if !known || route.omit.iter().any(|name| name.get_ref() == &meta.name) {
                continue;
            }
            let name = route.rename.get(&meta.name).map_or(meta.name.as_str(), |name| name.get_ref());
            if !names.insert(name) || (route.before && name == "before") {
                let (schema, table) = (&relation.schema, &relation.name);
                return Err(Problem(format!(
                    "two members of {schema}.{table} would be `{name}`: rename one"
                )));
            }
            let cast = route.cast.get(&meta.name).map(|cast| *cast.get_ref());
            let form = Form::of(meta.type_oid, cast)
                .map_err(|problem| Problem(format!("column {}: {}", meta.name, problem.0)))?;
            if omits_large {
                if first {
                    self.literal(b"{");
                }
                self.steps.push(Step::Member { name: colon(name), index, form });
            } else {
                self.member(first, name);
                self.steps.push(Step::Value { index, form });
            }
            first = false;
        }
        self.literal(if first { b"{}" } else { b"}" });
        Ok(())
    }

    /// Appends the member `before` to the flat object.
    fn before(&mut self, route: &Route, scope: &Scope<'_>) -> Result<(), Problem> {
        if !scope.relation.is_full() {
            let (schema, name) = (&scope.relation.schema, &scope.relation.name);
            return Err(Problem(format!(
                "`before` needs the whole row before an update of {schema}.{name}: \
                 `alter table {} replica identity full`",
                scope.relation.sql()
            )));
        }
        if let Some(Step::Literal(last)) = self.steps.last_mut() {
            last.pop();
        }
        let lead: &[u8] = if self.steps.len() > 1 { b"," } else { b"" };
        self.literal(lead);
        self.literal(b"\"before\":");
        let mut old = Body::default();
        old.flat(route, scope)?;
        self.steps.push(Step::Before(old));
        self.literal(b"}");
        Ok(())
    }

    fn object(&mut self, object: &Object, scope: &Scope<'_>) -> Result<(), Problem> {
        for (position, (name, leaf)) in object.iter().enumerate() {
            self.member(position == 0, name);
            match leaf {
                Leaf::Object(inner) => self.object(inner, scope)?,
                Leaf::Template(text) => {
                    let template = Template::parse(text.get_ref()).map_err(Problem)?;
                    self.template(&template, scope)?;
                }
                Leaf::Fixed(json) => self.literal(json.as_bytes()),
            }
        }
        self.literal(if object.is_empty() { b"{}" } else { b"}" });
        Ok(())
    }

    fn template(&mut self, template: &Template, scope: &Scope<'_>) -> Result<(), Problem> {
        if let Some(name) = template.json_column() {
            let index = scope.column(name)?;
            let form = Form::natural(scope.type_oid(index));
            self.steps.push(Step::Value { index, form });
            return Ok(());
        }
        match template.constant() {
            Some(text) => {
                let mut quoted = Vec::new();
                json::string(text.as_bytes(), &mut quoted);
                self.literal(&quoted);
            }
            None => self.steps.push(Step::Text(template.bind(scope)?)),
        }
        Ok(())
    }
}

/// `"name":`
fn colon(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    json::string(name.as_bytes(), &mut out);
    out.push(b':');
    out
}

fn before(body: &Body, row: &Row<'_>, scratch: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<(), Problem> {
    if row.op == Op::Insert {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    let Some(old) = row.before() else {
        return Err(Problem(
            "the WAL does not have the row before this update; replica identity full puts it there"
                .to_owned(),
        ));
    };
    body.write(&Row::insert(old), scratch, out)
}
