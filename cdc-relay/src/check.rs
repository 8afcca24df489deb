//! Checks the routes file: variables are filled in, every name leads somewhere, every template parses.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::routes::{FIXED_PROPERTIES, Route, Routes, Source, Table, Text};
use crate::template::Template;

/// The text it came from, for line numbers, and the environment.
pub struct Check<'a> {
    pub text: &'a str,
    pub env: &'a dyn Fn(&str) -> Option<String>,
}

impl Check<'_> {
    /// Fills in the variables, then checks.
    pub fn all(&self, routes: &mut Routes) -> Result<()> {
        self.substitute(routes)?;
        self.routes(routes)
    }

    fn line(&self, at: &Text) -> usize {
        self.text.get(..at.span().start).unwrap_or_default().bytes().filter(|&b| b == b'\n').count() + 1
    }

    fn fail<T>(&self, at: &Text, key: &str, problem: &str) -> Result<T> {
        bail!("line {}, `{key}`: {problem}", self.line(at))
    }

    fn substitute(&self, routes: &mut Routes) -> Result<()> {
        let Routes { relay, kafka, topics, queues, sources } = routes;
        self.expand(&mut relay.state_topic, "state_topic")?;
        self.expand(&mut relay.dead_letter_topic, "dead_letter_topic")?;
        for (key, value) in kafka {
            self.expand(value, key)?;
        }
        for topic in topics {
            self.expand(&mut topic.name, "name")?;
            for (key, value) in &mut topic.config {
                self.expand(value, key)?;
            }
        }
        for queue in queues {
            self.expand(&mut queue.name, "name")?;
        }
        for source in sources {
            let Source { name, url, slot, publication, event_source, ignore, tables } = source;
            for (text, key) in [(name, "name"), (url, "url"), (slot, "slot"), (publication, "publication")] {
                self.expand(text, key)?;
            }
            self.expand(event_source, "event_source")?;
            for name in ignore {
                self.expand(name, "ignore")?;
            }
            for table in tables {
                self.substitute_table(table)?;
            }
        }
        Ok(())
    }

    fn substitute_table(&self, table: &mut Table) -> Result<()> {
        let Table { name, key, id, subject, headers, names: _, snapshot: _, routes } = table;
        self.expand(name, "name")?;
        self.expand(key, "key")?;
        for (text, key) in [(id, "id"), (subject, "subject")] {
            if let Some(text) = text {
                self.expand(text, key)?;
            }
        }
        for (key, value) in headers {
            self.expand(value, key)?;
        }
        for route in routes {
            self.expand(&mut route.kind, "type")?;
            for (text, key) in [(&mut route.topic, "topic"), (&mut route.queue, "queue")] {
                if let Some(text) = text {
                    self.expand(text, key)?;
                }
            }
            for (key, value) in &mut route.headers {
                self.expand(value, key)?;
            }
        }
        Ok(())
    }

    /// Replaces `${NAME}` and `${NAME:-default}`.
    fn expand(&self, text: &mut Text, key: &str) -> Result<()> {
        if !text.get_ref().contains("${") {
            return Ok(());
        }
        let mut out = String::new();
        let mut rest = text.get_ref().as_str();
        while let Some((before, after)) = rest.split_once("${") {
            let Some((inside, tail)) = after.split_once('}') else {
                return self.fail(text, key, "`${` without `}`");
            };
            let (name, default) = match inside.split_once(":-") {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (inside, None),
            };
            let Some(value) = (self.env)(name).filter(|value| !value.is_empty()).or(default) else {
                return self.fail(text, key, &format!("the environment variable {name} is not set"));
            };
            out.push_str(before);
            out.push_str(&value);
            rest = tail;
        }
        out.push_str(rest);
        *text.get_mut() = out;
        Ok(())
    }

    fn routes(&self, routes: &Routes) -> Result<()> {
        self.unique(routes.topics.iter().map(|topic| &topic.name), "topics.name")?;
        self.unique(routes.queues.iter().map(|queue| &queue.name), "queues.name")?;
        self.unique(routes.sources.iter().map(|source| &source.name), "sources.name")?;
        if routes.sources.is_empty() {
            bail!("`sources`: none is given");
        }
        for topic in &routes.topics {
            if topic.partitions < 1 {
                return self.fail(&topic.name, "partitions", "must be at least 1");
            }
        }
        for (key, value) in &routes.kafka {
            if FIXED_PROPERTIES.contains(&key.as_str()) {
                return self.fail(value, key, "is fixed: order and safety rest on it");
            }
        }
        for source in &routes.sources {
            self.unique(source.tables.iter().map(|table| &table.name), "tables.name")?;
            for table in &source.tables {
                self.table(routes, table)?;
            }
        }
        Ok(())
    }

    fn unique<'t>(&self, names: impl Iterator<Item = &'t Text>, key: &str) -> Result<()> {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.get_ref()) {
                return self.fail(name, key, &format!("`{}` is there twice", name.get_ref()));
            }
        }
        Ok(())
    }

    fn template(&self, text: &Text, key: &str) -> Result<Template> {
        Template::parse(text.get_ref()).or_else(|problem| self.fail(text, key, &problem))
    }

    fn table(&self, routes: &Routes, table: &Table) -> Result<()> {
        if self.template(&table.key, "key")?.constant().is_some() {
            return self.fail(&table.key, "key", "names no column");
        }
        for (text, key) in [(&table.id, "id"), (&table.subject, "subject")] {
            if let Some(text) = text {
                self.template(text, key)?;
            }
        }
        if table.routes.is_empty() {
            return self.fail(
                &table.name,
                "routes",
                "the table has none; if it is not told, list it in `ignore`",
            );
        }
        for (key, value) in table.headers.iter().chain(table.routes.iter().flat_map(|route| &route.headers)) {
            self.template(value, key)?;
        }
        table.routes.iter().try_for_each(|route| self.route(routes, route))
    }

    fn route(&self, routes: &Routes, route: &Route) -> Result<()> {
        self.template(&route.kind, "type")?;
        match (&route.topic, &route.queue) {
            (Some(topic), None) => {
                if let Some(name) = self.template(topic, "topic")?.constant()
                    && routes.topic_index(name).is_none()
                {
                    return self.fail(topic, "topic", &format!("`{name}` is not one of [[topics]]"));
                }
            }
            (None, Some(queue)) => {
                if routes.queue_index(queue.get_ref()).is_none() {
                    let problem = format!("`{}` is not one of [[queues]]", queue.get_ref());
                    return self.fail(queue, "queue", &problem);
                }
            }
            _ => return self.fail(&route.kind, "topic", "a route has either `topic` or `queue`"),
        }
        for (column, values) in &route.when {
            if values.is_empty() {
                return self.fail(
                    &route.kind,
                    &format!("when.{column}"),
                    "no value is given: nothing matches",
                );
            }
        }
        if let Some(body) = &route.body {
            if !(route.omit.is_empty() && route.rename.is_empty() && route.cast.is_empty()) {
                return self.fail(&route.kind, "body", "excludes `omit`, `rename` and `cast`");
            }
            if let Err(problem) = crate::body::check(body) {
                return self.fail(&route.kind, "body", &problem);
            }
        }
        Ok(())
    }
}
