//! The config's TOML, and where in it a mistake is.

use std::ops::Range;

use anyhow::anyhow;
use toml::de::{DeTable, DeValue};

use crate::room::config::keys::{Group, Key, MachineSection, Settings};

/// Section and key of a value, such as `["groups", "lab", "image"]`.
pub type Place = Vec<String>;

/// A value that can be read and is wrong.
#[derive(Debug)]
pub struct Mistake {
    pub place: Place,
    /// What is wrong with it.
    pub why: String,
}

impl Mistake {
    /// As an error that names the line.
    pub fn in_file(self, text: &str) -> anyhow::Error {
        match line_of(text, &self.place) {
            Some(line) => anyhow!("line {line}: {}", self.why),
            None => anyhow!(self.why),
        }
    }
}

/// Reads a file.
///
/// # Errors
/// An unknown key or a bad value: with its line, and what is allowed.
pub fn read(text: &str) -> anyhow::Result<Settings> {
    toml::from_str(text).map_err(|error| match hint(&error, text) {
        // The reader's text ends with a line break.
        Some(hint) => anyhow!("{error}{hint}"),
        None => error.into(),
    })
}

/// The line of a key, counted from 1.
fn line_of(text: &str, place: &Place) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut at = None;
    for name in place {
        let (key, value) = table.iter().find(|(key, _)| is_key(name, key.get_ref()))?;
        at = Some(key.span().start);
        if let DeValue::Table(inner) = value.get_ref() {
            table = inner;
        }
    }
    Some(1 + text.get(..at?)?.matches('\n').count())
}

/// Whether a key of the file is this one; a MAC address can be written in several ways.
fn is_key(name: &str, written: &str) -> bool {
    name == written || written.parse::<netboot::MacAddr>().is_ok_and(|mac| mac.to_string() == name)
}

fn hint(error: &toml::de::Error, text: &str) -> Option<String> {
    let place = place_of(&error.span()?, text)?;
    let (key, section) = place.split_last()?;
    let keys = match section.first().map(String::as_str) {
        Some("groups") => Group::keys(),
        Some(_) => MachineSection::keys(),
        None => Settings::keys(),
    };
    let find = |keys: &[Key]| keys.iter().find(|known| known.name == key).cloned();
    if !error.message().starts_with("unknown field") {
        return find(&keys).map(|known| format!("`{key}` takes {}", known.allowed));
    }
    if !section.is_empty() && find(&Settings::keys()).is_some() {
        return Some(format!("`{key}` is for all machines: write it above the first [section]"));
    }
    let sections = ["groups", "machines"].into_iter().filter(|_| section.is_empty());
    let near = order::nearest(key, keys.iter().map(|known| known.name).chain(sections))?;
    Some(format!("did you mean `{near}`?"))
}

/// The key that a part of the file belongs to.
fn place_of(part: &Range<usize>, text: &str) -> Option<Place> {
    fn find(table: &DeTable<'_>, part: &Range<usize>) -> Option<Place> {
        for (key, value) in table {
            let is_here = |span: Range<usize>| span.start <= part.start && part.end <= span.end;
            // A section's span is its head, in which its name comes first.
            let inner = match value.get_ref() {
                DeValue::Table(inner) if !is_here(key.span()) => find(inner, part),
                _ => None,
            };
            if inner.is_some() || is_here(key.span()) || is_here(value.span()) {
                let mut place = vec![key.get_ref().to_string()];
                place.extend(inner.into_iter().flatten());
                return Some(place);
            }
        }
        None
    }
    find(DeTable::parse(text).ok()?.get_ref(), part)
}
