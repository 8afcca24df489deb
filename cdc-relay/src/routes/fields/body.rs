//! Reads a message body.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::DeValue;

use super::{Fields, Kind, integer};
use crate::routes::{Leaf, Object};

impl Fields<'_, '_> {
    /// A message body.
    pub fn object(&mut self, key: &'static str) -> Option<Spanned<Object>> {
        let value = self.ask(key, Kind::Object, false)?;
        let object = self.as_object(value, key)?;
        Some(Spanned::new(self.key(key).unwrap_or_else(|| value.span()), object))
    }

    fn as_object(&self, value: &Spanned<DeValue<'_>>, key: &str) -> Option<Object> {
        let DeValue::Table(table) = value.get_ref() else { return self.wrong(value, key, "a table") };
        let leaf = |(name, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
            let name = name.get_ref().to_string();
            let leaf = match value.get_ref() {
                DeValue::String(_) => Leaf::Template(self.as_text(value, &name)?),
                DeValue::Boolean(flag) => Leaf::Fixed(flag.to_string()),
                DeValue::Integer(digits) => Leaf::Fixed(integer(digits)?.to_string()),
                DeValue::Table(_) => Leaf::Object(self.as_object(value, &name)?),
                _ => return self.wrong(value, &name, "a template or a table"),
            };
            Some((name, leaf))
        };
        Some(table.iter().filter_map(leaf).collect())
    }
}
