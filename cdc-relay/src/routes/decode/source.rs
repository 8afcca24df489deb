//! Reads sources, and kinds: what several sources have in common.
//!
//! * A source has its tables itself, or a kind has them for it and for others, such as the shards of one service.
//! * All sources of a kind emit the same events: templates see the kind's name where they ask for the source's.

use std::collections::BTreeSet;

use toml::Spanned;

use super::table::table;
use crate::nearest::hint;
use crate::routes::fields::Fields;
use crate::routes::{IgnoredTables, OriginRule, Pattern, Source, SynchronousRule, Table, Text};

/// The keys that a kind has for its sources. A source without a kind has them itself.
#[derive(Clone)]
struct Shared {
    publication: Option<Text>,
    event_source: Option<Text>,
    synchronous: Option<SynchronousRule>,
    origin: Option<OriginRule>,
    ignore: Vec<IgnoredTables>,
    tables: Vec<Table>,
    patterns: Vec<Pattern>,
}

pub struct Kind {
    name: Text,
    shared: Shared,
}

/// The tables of a file, as messages call them.
#[derive(Clone, Copy)]
struct Labels {
    tables: &'static str,
    routes: &'static str,
}

/// Keys that a source of a kind does not have itself.
const OF_THE_KIND: [&str; 4] = ["publication", "event_source", "ignore", "tables"];

pub fn kind(mut fields: Fields<'_, '_>) -> Kind {
    let name = fields.required("name");
    let labels = Labels { tables: "kinds.tables", routes: "kinds.tables.routes" };
    let shared = shared(&mut fields, &name, labels);
    fields.finish();
    Kind { name, shared }
}

pub fn source(mut fields: Fields<'_, '_>, kinds: &[Kind]) -> Source {
    let name = fields.required("name");
    let url = fields.required("url");
    let (slot, of) = (fields.text("slot"), fields.text("kind"));
    let labels = Labels { tables: "sources.tables", routes: "sources.tables.routes" };
    let own = shared(&mut fields, of.as_ref().unwrap_or(&name), labels);
    if of.is_some() {
        for key in OF_THE_KIND {
            if let Some(at) = fields.key(key) {
                fields.note(
                    &at,
                    key,
                    "the source has a kind: this belongs to the kind, for all of its sources",
                );
            }
        }
    }
    fields.finish();
    let kind = of.as_ref().and_then(|of| kinds.iter().find(|kind| kind.name.get_ref() == of.get_ref()));
    let (synchronous, origin) = (own.synchronous, own.origin);
    let Shared { publication, event_source, ignore, tables, patterns, .. } = match kind {
        Some(Kind { shared, .. }) => shared.clone(),
        None => own,
    };
    let synchronous = synchronous.or_else(|| kind?.shared.synchronous);
    let origin = origin.or_else(|| kind?.shared.origin);
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let own: String = format!("cdc_relay_{}", name.get_ref().chars().map(plain).collect::<String>());
    let default = |text: String| Text::new(name.span(), text);
    let kind = of.unwrap_or_else(|| name.clone());
    Source {
        own_publication: publication.is_none(),
        slot: slot.unwrap_or_else(|| default(own.clone())),
        publication: publication.unwrap_or_else(|| default(own)),
        event_source: event_source.unwrap_or_else(|| default(format!("/{}", kind.get_ref()))),
        synchronous: synchronous.unwrap_or(SynchronousRule::Off),
        origin: origin.unwrap_or(OriginRule::Any),
        ignore,
        tables,
        patterns,
        kind,
        url,
        name,
    }
}

/// Notes names that lead nowhere: a kind that no source has, a kind that is not there, and one that is there twice.
pub fn check_kinds(fields: &Fields<'_, '_>, kinds: &[Kind], sources: &[Source]) {
    let names = || kinds.iter().map(|kind| kind.name.get_ref().as_str());
    let mut seen = BTreeSet::new();
    for Kind { name, .. } in kinds {
        if !seen.insert(name.get_ref()) {
            fields.note(&name.span(), "name", format!("`{}` is there twice", name.get_ref()));
        }
        if sources.iter().all(|source| source.kind.get_ref() != name.get_ref()) {
            fields.note(&name.span(), "name", format!("no source is of the kind `{}`", name.get_ref()));
        }
    }
    // Without the key it is the source's own name, at the same place.
    for source in sources.iter().filter(|source| source.kind.span() != source.name.span()) {
        let of = source.kind.get_ref();
        if !names().any(|name| name == of) {
            let near = hint(of, names());
            fields.note(&source.kind.span(), "kind", format!("`{of}` is not one of [[kinds]]{near}"));
        }
    }
}

fn shared(fields: &mut Fields<'_, '_>, name: &Text, labels: Labels) -> Shared {
    let publication = fields.text("publication");
    let event_source = fields.text("event_source");
    let synchronous = fields.one_of("synchronous").map(Spanned::into_inner);
    let origin = fields.one_of("origin").map(Spanned::into_inner);
    let ignore = fields.texts("ignore").into_iter().filter_map(|text| ignored(fields, text)).collect();
    let (mut tables, mut patterns) = (Vec::new(), Vec::new());
    for fields in fields.tables("tables", labels.tables).unwrap_or_default() {
        let (table, which) = table(fields, name, labels.routes);
        match which {
            Some(which) => patterns.push(Pattern { which, table }),
            None => tables.push(table),
        }
    }
    Shared { publication, event_source, synchronous, origin, ignore, tables, patterns }
}

fn ignored(fields: &Fields<'_, '_>, text: Text) -> Option<IgnoredTables> {
    let which =
        text.get_ref().parse().map_err(|problem: String| fields.note(&text.span(), "ignore", problem));
    Some(IgnoredTables { which: which.ok()?, text })
}
