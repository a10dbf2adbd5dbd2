//! Templates: text with fields of what is listed.

use std::str::FromStr;

use serde_json::Value;
use thiserror::Error;

use super::{
    fields::{Fields, is_same},
    to_json,
};
use crate::output::table;

/// Why a template is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum FormatError {
    #[error("the template is empty")]
    Empty,
    #[error("a {{{{ is not closed")]
    Open,
    #[error("{{{{{0}}}}} is no field: write {{{{.Name}}}}, {{{{json .Name}}}}, upper or lower")]
    NotAField(String),
    #[error("there is no field {name}; there are: {known}")]
    Unknown { name: String, known: String },
}

/// Text with fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
    /// With a head, and tabs as columns.
    is_table: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, how: How },
}

/// How a field is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Plain,
    Json,
    Upper,
    Lower,
}

impl FromStr for Template {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (is_table, mut rest) = match text.strip_prefix("table ") {
            Some(rest) => (true, rest.trim_start()),
            None => (false, text),
        };
        if rest.is_empty() {
            return Err(FormatError::Empty);
        }
        let mut parts = Vec::new();
        while let Some((before, field)) = rest.split_once("{{") {
            let (field, after) = field.split_once("}}").ok_or(FormatError::Open)?;
            if !before.is_empty() {
                parts.push(Part::Text(unescape(before)));
            }
            parts.push(parse_field(field)?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(unescape(rest)));
        }
        Ok(Self { parts, is_table })
    }
}

/// `\t` and `\n` as a shell leaves them.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

fn parse_field(text: &str) -> Result<Part, FormatError> {
    let refused = || FormatError::NotAField(text.to_owned());
    let words: Vec<&str> = text.split_whitespace().collect();
    let (how, path) = match words[..] {
        [path] => (How::Plain, path),
        ["json", path] => (How::Json, path),
        ["upper", path] => (How::Upper, path),
        ["lower", path] => (How::Lower, path),
        _ => return Err(refused()),
    };
    let names = path.strip_prefix('.').ok_or_else(refused)?;
    let path: Vec<String> = match names {
        "" => Vec::new(),
        names => names.split('.').map(str::to_owned).collect(),
    };
    let is_name = |name: &String| {
        let is_part = |it: char| it.is_ascii_alphanumeric() || matches!(it, '_' | '-');
        !name.is_empty() && name.chars().all(is_part)
    };
    if !path.iter().all(is_name) {
        return Err(refused());
    }
    Ok(Part::Field { path, how })
}

impl Template {
    /// With the fields' own names; refuses those that there are not.
    pub(super) fn of(mut self, fields: &Fields) -> Result<Self, FormatError> {
        for part in &mut self.parts {
            if let Part::Field { path, .. } = part {
                *path = own_names(path, fields)?;
            }
        }
        Ok(self)
    }

    /// A line for each, or a table.
    pub(super) fn render(&self, items: &[Value]) -> String {
        let lines: Vec<String> = items.iter().map(|item| self.line(item)).collect();
        if !self.is_table {
            return lines.join("\n");
        }
        let rows = std::iter::once(self.head()).chain(lines);
        let rows: Vec<Vec<String>> = rows
            .map(|line| line.split('\t').map(str::to_owned).collect())
            .collect();
        table::align(&rows)
    }

    fn line(&self, item: &Value) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, how } => written(find(item, path), *how),
        });
        parts.collect()
    }

    fn head(&self) -> String {
        let parts = self.parts.iter().map(|part| match part {
            Part::Text(text) => text.clone(),
            Part::Field { path, .. } => path.last().map(|it| head(it)).unwrap_or_default(),
        });
        parts.collect()
    }
}

fn own_names(path: &[String], fields: &Fields) -> Result<Vec<String>, FormatError> {
    let mut at = fields;
    let mut names = Vec::with_capacity(path.len());
    for name in path {
        let unknown = || FormatError::Unknown {
            name: format!(".{}", path.join(".")),
            known: match at.names()[..] {
                [] => "none in a value".to_owned(),
                ref names => names.join(", "),
            },
        };
        let (own, inner) = at.get(name).ok_or_else(unknown)?;
        names.push(own.to_owned());
        at = inner;
    }
    Ok(names)
}

/// `mem_mib` is `MEM MIB`.
fn head(name: &str) -> String {
    name.replace('_', " ").to_uppercase()
}

fn find<'a>(item: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(item, |item, name| {
        let Value::Object(fields) = item else {
            return &Value::Null;
        };
        let exact = fields.get(name);
        let similar = || fields.iter().find(|(it, _)| is_same(it, name));
        exact
            .or_else(|| similar().map(|(_, value)| value))
            .unwrap_or(&Value::Null)
    })
}

fn written(value: &Value, how: How) -> String {
    match how {
        How::Plain => plain(value),
        How::Json => to_json(value),
        How::Upper => plain(value).to_uppercase(),
        How::Lower => plain(value).to_lowercase(),
    }
}

/// In words: what is not there is empty, and of a guest's text no terminal obeys anything.
fn plain(value: &Value) -> String {
    let is_word = |it: &Value| !it.is_array() && !it.is_object();
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.chars().filter(|it| !it.is_control()).collect(),
        Value::Array(items) if items.iter().all(is_word) => {
            let words: Vec<String> = items.iter().map(plain).collect();
            words.join(",")
        }
        other => to_json(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rendered(template: &str, items: &[Value]) -> String {
        template.parse::<Template>().unwrap().render(items)
    }

    #[test]
    fn fields_are_found_however_they_are_written() {
        let items =
            [json!({"id": "a", "mem_mib": 512, "labels": {"my-app": "x"}, "by": ["p", "q"]})];
        assert_eq!(
            rendered("{{.ID}}={{.MemMiB}} {{ .mem_mib }}", &items),
            "a=512 512"
        );
        assert_eq!(rendered("{{.Labels.my-app}},{{.Gone}}|", &items), "x,|");
        assert_eq!(
            rendered("{{.By}} {{json .By}} {{upper .ID}}", &items),
            r#"p,q ["p","q"] A"#
        );
        assert_eq!(rendered("{{json .}}", &[json!({"a": 1})]), r#"{"a":1}"#);
        assert_eq!(rendered("plain\\ttext", &items), "plain\ttext");
    }

    #[test]
    fn a_table_has_a_head_and_columns() {
        let items = [
            json!({"id": "long-id", "mem_mib": 1}),
            json!({"id": "b", "mem_mib": 22}),
        ];
        assert_eq!(
            rendered("table {{.id}}\\t{{.mem_mib}}", &items),
            "ID       MEM MIB\nlong-id  1\nb        22"
        );
        assert_eq!(rendered("table {{.ID}}", &[]), "ID");
    }

    #[test]
    fn a_guests_text_moves_no_terminal() {
        let items = [json!({"name": "a\u{1b}[2J\nb"})];
        assert_eq!(rendered("{{.Name}}", &items), "a[2Jb");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-z_]{1,4}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect()),
            ]
        })
    }

    proptest! {
        /// Whatever is typed is understood or refused, and what is understood can be rendered.
        #[test]
        fn any_text_is_a_template_or_refused(text in any::<String>(), item in json_value()) {
            if let Ok(template) = text.parse::<Template>() {
                template.render(std::slice::from_ref(&item));
            }
        }

        #[test]
        fn anything_like_a_template_is_one_or_refused(
            text in r"(table )?((\{\{ ?(json )?\.[A-Za-z_.]{0,6} ?\}\})|[a-z{}\\ ]{0,4}){0,5}",
            item in json_value(),
        ) {
            if let Ok(template) = text.parse::<Template>() {
                template.render(&[item.clone(), item]);
            }
        }

        /// Text without fields comes out as it went in.
        #[test]
        fn text_stays(text in r"[a-z0-9 :;,.}-]{1,20}") {
            prop_assume!(!text.starts_with("table "));
            prop_assert_eq!(rendered(&text, &[Value::Null]), text);
        }

        /// A field's value comes out between what stands around it.
        #[test]
        fn values_are_put_where_their_fields_are(
            before in "[a-z ]{0,6}", value in "[ -~]{0,9}", after in "[a-z ]{0,6}",
        ) {
            prop_assume!(!before.starts_with("table "));
            let item = json!({"x_y": value});
            let template = format!("{before}{{{{.XY}}}}{after}");
            prop_assert_eq!(rendered(&template, &[item]), format!("{before}{value}{after}"));
        }
    }
}
