//! Reads the keys of a TOML table, one by one, by name and kind.
//!
//! * A mistake is noted, and reading goes on: a person sees all mistakes at once.
//! * Variables are filled in as texts are read.
//! * A key that no reader asked for is unknown.

mod body;
mod variables;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;

use strum::VariantNames;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use self::variables::expand;
use super::Text;
use super::findings::{Findings, NOWHERE};
use crate::nearest::hint;

/// The context that all tables of a file share.
pub struct FileContext<'a> {
    pub env: &'a dyn Fn(&str) -> Option<String>,
    pub findings: &'a Findings,
    /// The keys that each kind of table may have.
    pub known: RefCell<BTreeMap<&'static str, Vec<KnownKey>>>,
}

/// A key that a table may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    pub key: &'static str,
    pub kind: Kind,
    pub required: bool,
}

/// The expected kind of a key's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Texts,
    Integer,
    Boolean,
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// Any of these texts.
    ManyOf(&'static [&'static str]),
    /// Texts by names that the file chooses.
    ByName(&'static Kind),
    Table(&'static str),
    Tables(&'static str),
    Values,
    Condition,
    Object,
}

/// The keys of one table.
pub struct Fields<'a, 'i> {
    file: &'a FileContext<'a>,
    kind: &'static str,
    table: &'a DeTable<'i>,
    at: Range<usize>,
    asked: Vec<&'static str>,
}

impl<'a, 'i> Fields<'a, 'i> {
    pub fn new(file: &'a FileContext<'a>, kind: &'static str, table: &'a Spanned<DeTable<'i>>) -> Self {
        Fields { file, kind, table: table.get_ref(), at: table.span(), asked: Vec::new() }
    }

    /// The range of the table in the file.
    pub fn at(&self) -> Range<usize> {
        self.at.clone()
    }

    /// The range of a key, if the table has it.
    pub fn key(&self, key: &str) -> Option<Range<usize>> {
        self.table.get_key_value(key).map(|(key, _)| key.span())
    }

    pub fn note(&self, at: &Range<usize>, key: &str, problem: impl Into<String>) {
        self.file.findings.add(at, key, problem);
    }

    /// Notes every unknown key.
    pub fn finish(self) {
        for key in self.table.keys() {
            let name = key.get_ref().as_ref();
            if !self.asked.contains(&name) {
                let table = if self.kind.is_empty() { String::new() } else { format!(" in [{}]", self.kind) };
                let near = hint(name, self.asked.iter().copied());
                self.note(&key.span(), name, format!("there is no such key{table}{near}"));
            }
        }
    }

    fn ask(&mut self, key: &'static str, kind: Kind, required: bool) -> Option<&'a Spanned<DeValue<'i>>> {
        self.asked.push(key);
        let mut all = self.file.known.borrow_mut();
        let known = all.entry(self.kind).or_default();
        if !known.iter().any(|known| known.key == key) {
            known.push(KnownKey { key, kind, required });
        }
        let found = self.table.get(key);
        if found.is_none() && required {
            self.note(&self.at, key, "is missing");
        }
        found
    }

    fn wrong<T>(&self, value: &Spanned<DeValue<'_>>, key: &str, wanted: &str) -> Option<T> {
        let found = match value.get_ref() {
            DeValue::String(_) => "text",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.note(&value.span(), key, format!("must be {wanted}, and is {found}"));
        None
    }

    pub fn text(&mut self, key: &'static str) -> Option<Text> {
        let value = self.ask(key, Kind::Text, false)?;
        self.as_text(value, key)
    }

    /// A missing key is noted, and reads as an empty text at `NOWHERE`.
    pub fn required(&mut self, key: &'static str) -> Text {
        let value = self.ask(key, Kind::Text, true);
        value.and_then(|value| self.as_text(value, key)).unwrap_or_else(|| Text::new(NOWHERE, String::new()))
    }

    pub fn flag(&mut self, key: &'static str) -> bool {
        match self.ask(key, Kind::Boolean, false) {
            None => false,
            Some(value) => match value.get_ref() {
                DeValue::Boolean(flag) => *flag,
                _ => self.wrong(value, key, "true or false").unwrap_or_default(),
            },
        }
    }

    pub fn number<N: TryFrom<i64>>(&mut self, key: &'static str) -> Option<Spanned<N>> {
        let value = self.ask(key, Kind::Integer, false)?;
        match value.get_ref() {
            DeValue::Integer(digits) => {
                let number = integer(digits).and_then(|number| N::try_from(number).ok());
                if number.is_none() {
                    self.note(&value.span(), key, "is out of range");
                }
                number.map(|number| Spanned::new(value.span(), number))
            }
            _ => self.wrong(value, key, "a whole number"),
        }
    }

    /// A value of a closed set.
    pub fn one_of<T: FromStr + VariantNames>(&mut self, key: &'static str) -> Option<Spanned<T>> {
        let value = self.ask(key, Kind::OneOf(T::VARIANTS), false)?;
        self.variant(value, key)
    }

    pub fn many_of<T: FromStr + VariantNames>(&mut self, key: &'static str) -> Vec<Spanned<T>> {
        let Some(value) = self.ask(key, Kind::ManyOf(T::VARIANTS), false) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(list) if list.is_empty() => {
                self.note(&value.span(), key, "is empty: nothing matches");
                Vec::new()
            }
            DeValue::Array(list) => list.iter().filter_map(|value| self.variant(value, key)).collect(),
            _ => self.wrong(value, key, "a list of texts").unwrap_or_default(),
        }
    }

    fn variant<T: FromStr + VariantNames>(
        &self,
        value: &Spanned<DeValue<'_>>,
        key: &str,
    ) -> Option<Spanned<T>> {
        let text = self.as_text(value, key)?;
        let found = text.get_ref().parse::<T>().ok();
        if found.is_none() {
            let names = T::VARIANTS;
            let (near, all) = (hint(text.get_ref(), names.iter().copied()), names.join("`, `"));
            self.note(&value.span(), key, format!("`{}` is not one of `{all}`{near}", text.get_ref()));
        }
        found.map(|found| Spanned::new(value.span(), found))
    }

    pub fn texts(&mut self, key: &'static str) -> Vec<Text> {
        let Some(value) = self.ask(key, Kind::Texts, false) else { return Vec::new() };
        match value.get_ref() {
            DeValue::Array(list) => list.iter().filter_map(|value| self.as_text(value, key)).collect(),
            _ => self.wrong(value, key, "a list of texts").unwrap_or_default(),
        }
    }

    /// Texts by name. Numbers and booleans read as their text.
    pub fn by_name(&mut self, key: &'static str) -> BTreeMap<String, Text> {
        let value = self.ask(key, Kind::ByName(&Kind::Text), false);
        value.map(|value| self.as_map(value, key)).unwrap_or_default()
    }

    /// Tables of texts, by name.
    pub fn names(&mut self, key: &'static str) -> BTreeMap<String, BTreeMap<String, Text>> {
        let value = self.ask(key, Kind::ByName(&Kind::ByName(&Kind::Text)), false);
        let entries = value.and_then(|value| self.entries(value, key)).unwrap_or_default();
        entries.into_iter().map(|(name, value)| (name.clone(), self.as_map(value, &name))).collect()
    }

    pub fn one_of_by_name<T: FromStr + VariantNames>(
        &mut self,
        key: &'static str,
        kind: &'static Kind,
    ) -> BTreeMap<String, Spanned<T>> {
        let value = self.ask(key, Kind::ByName(kind), false);
        let entries = value.and_then(|value| self.entries(value, key)).unwrap_or_default();
        let variant = |(name, value): (String, &Spanned<DeValue<'_>>)| {
            Some((name.clone(), self.variant(value, &name)?))
        };
        entries.into_iter().filter_map(variant).collect()
    }

    /// The values of a table whose names the file chooses.
    pub fn values(&mut self, key: &'static str, kind: Kind) -> Vec<(String, &'a Spanned<DeValue<'i>>)> {
        let value = self.ask(key, kind, false);
        value.and_then(|value| self.entries(value, key)).unwrap_or_default()
    }

    /// As `as_values`; empty without the key.
    pub fn values_of(&mut self, key: &'static str) -> Vec<Text> {
        let value = self.ask(key, Kind::Values, false);
        value.map(|value| self.as_values(value, key)).unwrap_or_default()
    }

    /// A list of values in Postgres' text form.
    pub fn as_values(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Vec<Text> {
        match value.get_ref() {
            DeValue::Array(list) if list.is_empty() => {
                self.note(&value.span(), key, "is an empty list: nothing matches");
                Vec::new()
            }
            DeValue::Array(list) => list.iter().filter_map(|value| self.as_scalar(value, key)).collect(),
            _ => self
                .wrong(value, key, "a list of values, such as [\"paid\", \"shipped\"]")
                .unwrap_or_default(),
        }
    }

    pub fn table(&mut self, key: &'static str, kind: &'static str) -> Option<Fields<'a, 'i>> {
        let value = self.ask(key, Kind::Table(kind), false)?;
        self.as_fields(value, key, kind)
    }

    /// The keys of a table that is a value.
    pub fn as_fields(
        &self,
        value: &'a Spanned<DeValue<'i>>,
        key: &str,
        kind: &'static str,
    ) -> Option<Fields<'a, 'i>> {
        match value.get_ref() {
            DeValue::Table(table) => {
                Some(Fields { file: self.file, kind, table, at: value.span(), asked: Vec::new() })
            }
            _ => self.wrong(value, key, "a table"),
        }
    }

    /// None: the table has no such key.
    pub fn tables(&mut self, key: &'static str, kind: &'static str) -> Option<Vec<Fields<'a, 'i>>> {
        let value = self.ask(key, Kind::Tables(kind), false)?;
        Some(match value.get_ref() {
            DeValue::Array(list) => {
                list.iter().filter_map(|value| self.as_fields(value, key, kind)).collect()
            }
            _ => self.wrong(value, key, "a list of tables").unwrap_or_default(),
        })
    }

    fn entries(
        &self,
        value: &'a Spanned<DeValue<'i>>,
        key: &str,
    ) -> Option<Vec<(String, &'a Spanned<DeValue<'i>>)>> {
        match value.get_ref() {
            DeValue::Table(table) => {
                Some(table.iter().map(|(name, value)| (name.get_ref().to_string(), value)).collect())
            }
            _ => self.wrong(value, key, "a table"),
        }
    }

    fn as_map(&self, value: &'a Spanned<DeValue<'i>>, key: &str) -> BTreeMap<String, Text> {
        let entries = self.entries(value, key).unwrap_or_default();
        let text = |(name, value): (String, &Spanned<DeValue<'_>>)| {
            let text = self.as_scalar(value, &name)?;
            Some((name, text))
        };
        entries.into_iter().filter_map(text).collect()
    }

    fn as_scalar(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Text> {
        match value.get_ref() {
            DeValue::Boolean(flag) => Some(Text::new(value.span(), flag.to_string())),
            DeValue::Integer(digits) => {
                integer(digits).map(|number| Text::new(value.span(), number.to_string()))
            }
            _ => self.as_text(value, key),
        }
    }

    fn as_text(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Text> {
        let DeValue::String(text) = value.get_ref() else { return self.wrong(value, key, "text") };
        match expand(text, self.file.env) {
            Ok(text) => Some(Text::new(value.span(), text)),
            Err(problem) => {
                self.note(&value.span(), key, problem);
                // The value exists, but is unknown.
                Some(Text::new(NOWHERE, String::new()))
            }
        }
    }
}

fn integer(digits: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(&digits.as_str().replace('_', ""), digits.radix()).ok()
}
