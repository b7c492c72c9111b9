//! LVM2's text format: `name = value`, `name { … }`, where values are numbers, strings, and lists of them.

use std::collections::BTreeMap;

/// Deepest nesting that is followed; metadata has four levels.
const DEPTH_MAX: usize = 8;

/// One section, or the whole text.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Section {
    values: BTreeMap<String, Value>,
    sections: BTreeMap<String, Section>,
}

/// The value after a `=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// A whole number; other numbers do not occur in the parts read here, and are kept as text.
    Number(i64),
    /// Text between quotes, or a word that is not a whole number.
    Text(String),
    /// Values between brackets.
    List(Vec<Value>),
}

impl Section {
    pub(super) fn value(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    /// A number that is not negative, by name.
    pub(super) fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Number(number) => u64::try_from(*number).ok(),
            Value::Text(_) | Value::List(_) => None,
        }
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self.value(name)? {
            Value::Text(text) => Some(text),
            Value::Number(_) | Value::List(_) => None,
        }
    }

    /// The texts of a list, by name.
    pub(super) fn texts(&self, name: &str) -> Option<Vec<&str>> {
        let Value::List(values) = self.value(name)? else { return None };
        values.iter().map(|value| if let Value::Text(text) = value { Some(text.as_str()) } else { None }).collect()
    }

    pub(super) fn list(&self, name: &str) -> Option<&[Value]> {
        if let Value::List(values) = self.value(name)? { Some(values) } else { None }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.get(name)
    }

    pub(super) fn sections(&self) -> &BTreeMap<String, Section> {
        &self.sections
    }
}

/// Reads a text; `None` if it is incomplete, defines a name twice, or is nested too deeply.
pub(crate) fn parse(text: &str) -> Option<Section> {
    let mut tokens = Tokens { rest: text };
    // Sections that are open, with their names; the first is the text itself.
    let mut open = vec![(String::new(), Section::default())];
    while let Some(token) = tokens.next()? {
        if token == Token::Mark('}') {
            let (name, section) = open.pop()?;
            let (_, parent) = open.last_mut()?;
            if parent.sections.insert(name, section).is_some() {
                return None;
            }
            continue;
        }
        let Token::Word(name) = token else { return None };
        match tokens.next()?? {
            Token::Mark('{') if open.len() < DEPTH_MAX => open.push((name.to_owned(), Section::default())),
            Token::Mark('=') => {
                let value = tokens.value()?;
                let (_, section) = open.last_mut()?;
                if section.values.insert(name.to_owned(), value).is_some() {
                    return None;
                }
            }
            _ => return None,
        }
    }
    let (_, whole) = open.pop()?;
    open.is_empty().then_some(whole)
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Quoted(String),
    Mark(char),
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    /// The next token; `Some(None)` at the end, `None` if a quote is not closed.
    #[allow(clippy::option_option, reason = "the outer one is for the question mark")]
    fn next(&mut self) -> Option<Option<Token<'a>>> {
        loop {
            self.rest = self.rest.trim_start_matches(|char: char| char.is_whitespace() || char == '\0');
            if !self.rest.starts_with('#') {
                break;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
        let Some(first) = self.rest.chars().next() else { return Some(None) };
        if "{}[]=,".contains(first) {
            self.rest = &self.rest[1..];
            return Some(Some(Token::Mark(first)));
        }
        if first == '"' {
            let mut plain = String::new();
            let mut chars = self.rest.char_indices().skip(1);
            while let Some((at, char)) = chars.next() {
                match char {
                    '"' => {
                        self.rest = &self.rest[at + 1..];
                        return Some(Some(Token::Quoted(plain)));
                    }
                    '\\' => plain.push(chars.next()?.1),
                    char => plain.push(char),
                }
            }
            return None;
        }
        let is_end = |char: char| char.is_whitespace() || "{}[]=,#\"\0".contains(char);
        let (word, rest) = self.rest.split_at(self.rest.find(is_end).unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(Some(Token::Word(word)))
    }

    fn value(&mut self) -> Option<Value> {
        match self.next()?? {
            Token::Mark('[') => {
                let mut values = Vec::new();
                let mut is_value_next = true;
                loop {
                    match self.next()?? {
                        Token::Mark(']') => return Some(Value::List(values)),
                        Token::Mark(',') if !is_value_next => is_value_next = true,
                        token if is_value_next => {
                            values.push(scalar(token)?);
                            is_value_next = false;
                        }
                        _ => return None,
                    }
                }
            }
            token => scalar(token),
        }
    }
}

fn scalar(token: Token<'_>) -> Option<Value> {
    match token {
        Token::Word(word) => Some(word.parse().map_or_else(|_| Value::Text(word.to_owned()), Value::Number)),
        Token::Quoted(text) => Some(Value::Text(text)),
        Token::Mark(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn metadata_parses() {
        let text = "vg0 {\nid = \"a-b\" # c { \"\nsize = -3\nflags = []\nstripes = [\n\"pv0\", 0,\n\"p\\\"v\", 7\n]\n}\n\
                    # Generated by LVM2\ncontents = \"Text Format\"\nf = 1.5\n\0";
        let whole = parse(text).expect("good text");
        assert_eq!((whole.text("contents"), whole.text("f")), (Some("Text Format"), Some("1.5")));
        let group = whole.section("vg0").expect("the section");
        assert_eq!((group.text("id"), group.number("size")), (Some("a-b"), None));
        assert_eq!(group.value("size"), Some(&Value::Number(-3)));
        assert_eq!(group.texts("flags"), Some(vec![]));
        assert_eq!(group.texts("stripes"), None);
        let text = |text: &str| Value::Text(text.to_owned());
        let list = [text("pv0"), Value::Number(0), text("p\"v"), Value::Number(7)];
        assert_eq!(group.list("stripes"), Some(&list[..]));
    }

    #[test]
    fn text_that_is_not_whole_is_none() {
        for bad in [
            "a {",
            "}",
            "a",
            "a =",
            "a = \"x",
            "a = \"x\\",
            "a = [1",
            "a = [1 2]",
            "a = {",
            "a = [,]",
            "= 1",
            "a = 1 a = 2",
            "a {} a {}",
            "\"a\" = 1",
            "a { b { c { d { e { f { g { h { } } } } } } } }",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert!(parse(&"a{".repeat(100_000)).is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c0-9={}\\[\\]\", \\\\\\n#é]{0,60}") {
            parse(&text);
        }
    }
}
