//! The JSON body of a message, compiled to a list of steps: text that is always the same, and columns between it.

use crate::json::{self, Form};
use crate::pgoutput::Relation;
use crate::routes::{Route, Text};
use crate::template::{Bound, Names, Problem, Row, Template, column};

#[derive(Debug, Clone)]
enum Step {
    Literal(Vec<u8>),
    /// A column in the JSON form of its type, or of its cast.
    Value {
        index: usize,
        form: Form,
    },
    /// A template as a JSON string; null if a column of it is.
    Text(Bound),
}

#[derive(Debug, Clone, Default)]
pub struct Body {
    steps: Vec<Step>,
}

/// Whether a body given in the routes can be understood; its columns are looked up later.
pub fn check(table: &toml::Table) -> Result<(), String> {
    for (key, value) in table {
        match value {
            toml::Value::String(text) => {
                Template::parse(text)?;
            }
            toml::Value::Table(inner) => check(inner)?,
            toml::Value::Boolean(_) | toml::Value::Integer(_) => {}
            other => {
                return Err(format!("`{key}` is a {}; it must be a template or a table", other.type_str()));
            }
        }
    }
    Ok(())
}

impl Body {
    /// Binds the body of a route to the columns of a relation.
    pub fn bind(route: &Route, relation: &Relation, names: &Names) -> Result<Body, Problem> {
        let mut body = Body::default();
        match &route.body {
            Some(table) => body.object(table, relation, names)?,
            None => body.flat(route, relation)?,
        }
        Ok(body)
    }

    /// Appends the body of this row.
    #[inline]
    pub fn write(&self, row: &Row<'_>, out: &mut Vec<u8>) -> Result<(), Problem> {
        for step in &self.steps {
            match step {
                Step::Literal(text) => out.extend_from_slice(text),
                Step::Value { index, form } => match row.text(*index)? {
                    Some(text) => form.write(text, out)?,
                    None => out.extend_from_slice(b"null"),
                },
                Step::Text(template) => {
                    let mut text = Vec::new();
                    if template.write(row, &mut text)? {
                        json::string(&text, out);
                    } else {
                        out.extend_from_slice(b"null");
                    }
                }
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
        let mut lead = vec![if first { b'{' } else { b',' }];
        json::string(name.as_bytes(), &mut lead);
        lead.push(b':');
        self.literal(&lead);
    }

    fn flat(&mut self, route: &Route, relation: &Relation) -> Result<(), Problem> {
        let named = route.omit.iter().map(Text::get_ref).chain(route.rename.keys()).chain(route.cast.keys());
        for name in named {
            column(relation, name)?;
        }
        let mut first = true;
        for (index, meta) in relation.columns.iter().enumerate() {
            if route.omit.iter().any(|name| name.get_ref() == &meta.name) {
                continue;
            }
            let name = route.rename.get(&meta.name).map_or(meta.name.as_str(), |name| name.get_ref());
            self.member(first, name);
            let cast = route.cast.get(&meta.name).map(|cast| *cast.get_ref());
            self.steps.push(Step::Value { index, form: Form::of(meta.type_oid, cast) });
            first = false;
        }
        self.literal(if first { b"{}" } else { b"}" });
        Ok(())
    }

    fn object(&mut self, table: &toml::Table, relation: &Relation, names: &Names) -> Result<(), Problem> {
        for (position, (name, value)) in table.iter().enumerate() {
            self.member(position == 0, name);
            match value {
                toml::Value::Table(inner) => self.object(inner, relation, names)?,
                toml::Value::String(text) => {
                    let template = Template::parse(text).map_err(Problem)?;
                    self.leaf(&template, relation, names)?;
                }
                other => self.literal(other.to_string().as_bytes()),
            }
        }
        self.literal(if table.is_empty() { b"{}" } else { b"}" });
        Ok(())
    }

    fn leaf(&mut self, template: &Template, relation: &Relation, names: &Names) -> Result<(), Problem> {
        if let Some(name) = template.json_column() {
            let index = column(relation, name)?;
            let type_oid = relation.columns.get(index).map_or(0, |column| column.type_oid);
            self.steps.push(Step::Value { index, form: Form::of(type_oid, None) });
            return Ok(());
        }
        match template.constant() {
            Some(text) => {
                let mut quoted = Vec::new();
                json::string(text.as_bytes(), &mut quoted);
                self.literal(&quoted);
            }
            None => self.steps.push(Step::Text(template.bind(relation, names)?)),
        }
        Ok(())
    }
}
