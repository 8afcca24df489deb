//! Checks one route: destination, conditions, deletes, and body.

use std::ops::Range;

use toml::Spanned;

use super::{Check, lists};
use crate::nearest::hint;
use crate::routes::row::Op;
use crate::routes::template::TableOfSource;
use crate::routes::{Condition, Deletes, Leaf, Object, Route, Text, Toast};

impl Check<'_> {
    pub(super) fn route(&self, route: &Route) {
        let kind = self.template(&route.kind, "type");
        self.destination(route);
        self.when(route);
        self.deletes(route, kind.is_some_and(|kind| kind.names_op()));
        self.shape(route);
    }

    fn destination(&self, route: &Route) {
        match (&route.topic, &route.queue) {
            (Some(topic), None) => {
                let Some(template) = self.template(topic, "topic") else { return };
                match template.constant() {
                    // A pattern's topics are known once its tables are.
                    None if template.of_table(TableOfSource::default()).is_some() => {}
                    None if !self.routes.lists_topics => self.note(
                        topic,
                        "topic",
                        "depends on the row: the topics that it may yield have to be listed as [[topics]]",
                    ),
                    None => {}
                    Some(name) if !self.routes.lists_topics => {
                        self.topic_name(&Text::new(topic.span(), name.to_owned()), "topic");
                    }
                    Some(name) if self.routes.topic_index(name).is_some() => {}
                    Some(name) => {
                        let topics = self.routes.topics.iter().map(|topic| topic.name.get_ref().as_str());
                        let near = hint(name, topics);
                        self.note(topic, "topic", format!("`{name}` is not one of [[topics]]{near}"));
                    }
                }
            }
            (None, Some(queue)) => {
                if self.routes.queue_index(queue.get_ref()).is_none() {
                    let queues = self.routes.queues.iter().map(|queue| queue.name.get_ref().as_str());
                    let near = hint(queue.get_ref(), queues);
                    self.note(
                        queue,
                        "queue",
                        format!("`{}` is not one of [[queues]]{near}", queue.get_ref()),
                    );
                }
            }
            (Some(_), Some(queue)) => {
                self.note(
                    queue,
                    "queue",
                    "a route has either `topic` or `queue`; a second route may have the other",
                );
            }
            (None, None) => self.findings.add(&route.at, "topic", "a route has either `topic` or `queue`"),
        }
    }

    fn when(&self, route: &Route) {
        let updates = route.op.is_empty() || lists(route, Op::Update);
        for column in route.changed.iter().filter(|_| !updates) {
            self.note(column, "changed", "is about updates, which `op` leaves out");
        }
        for (column, condition) in &route.when {
            if let Condition::Is { not, null: Some(true) } = condition
                && let Some(value) = not.first()
            {
                self.note(value, &format!("when.{column}"), "a value that is null is never one of `not`");
            }
        }
    }

    /// `names_op`: the type differs between operations.
    fn deletes(&self, route: &Route, names_op: bool) {
        let (at, deletes) = (&route.at, route.deletes);
        let named = matches!(deletes, Some(Deletes::Event | Deletes::Tombstone | Deletes::Both));
        let listed = route.op.iter().find(|op| *op.get_ref() == Op::Delete);
        if let Some(op) = listed
            && !named
        {
            let problem =
                "lists `delete`: say how it is emitted, `deletes = \"event\"`, `\"tombstone\"` or `\"both\"`";
            self.findings.add(&op.span(), "op", problem);
        }
        if named && !route.op.is_empty() && listed.is_none() {
            self.findings.add(at, "deletes", "emits deletes, which `op` leaves out");
        }
        let event = matches!(deletes, Some(Deletes::Event | Deletes::Both));
        if event && !names_op && route.op.iter().any(|op| *op.get_ref() != Op::Delete) | route.op.is_empty() {
            let problem = "a deleted row could not be distinguished from a new one: put `{@op}` into it, as in \"order.{@op}\"";
            self.note(&route.kind, "type", problem);
        }
        if let Some(queue) = &route.queue
            && matches!(deletes, Some(Deletes::Tombstone | Deletes::Both))
        {
            self.note(queue, "deletes", "a tombstone is for a compacted topic, and this is a queue");
        }
    }

    /// Checks the keys of the body.
    fn shape(&self, route: &Route) {
        if let Some(body) = &route.body {
            let flat = [
                ("omit", route.omit.first().map(Spanned::span)),
                ("rename", route.rename.values().next().map(Spanned::span)),
                ("cast", route.cast.values().next().map(Spanned::span)),
                ("before", route.before.then(|| route.at.clone())),
                ("toast", (route.toast == Toast::Omit).then(|| route.at.clone())),
            ];
            for (key, at) in flat {
                if let Some(at) = at {
                    self.findings.add(&at, key, "is about the flat object, and this route has a `body`");
                }
            }
            self.body(body);
        }
        for omitted in &route.omit {
            let column = omitted.get_ref();
            let clash = |key: &str, at: Option<Range<usize>>| {
                if let Some(at) = at {
                    self.findings.add(&at, key, format!("column `{column}` is omitted"));
                }
            };
            clash("rename", route.rename.get(column).map(Spanned::span));
            clash("cast", route.cast.get(column).map(Spanned::span));
        }
        self.unique(route.rename.values(), "rename", str::to_owned);
    }

    fn body(&self, body: &Object) {
        for (name, leaf) in body {
            match leaf {
                Leaf::Template(text) => {
                    self.template(text, name);
                }
                Leaf::Object(inner) => self.body(inner),
                Leaf::Fixed(_) => {}
            }
        }
    }
}
