//! What is printed: JSON, ids, tables, and objects as text. Pure: strings out of values.

use std::{fmt::Write, io::IsTerminal};

use serde_json::Value;

use crate::failure::Failure;

/// Colours on standard output, or none.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours for a terminal whose user did not say NO_COLOR (no-color.org).
    pub fn detect() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) || std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        Self {
            on: !refused && std::io::stdout().is_terminal(),
        }
    }

    /// For a word that tells a state: green when all is well, red when it is not.
    pub fn state(self, word: &str) -> String {
        let colour = match word {
            "ready" | "active" | "reachable" | "ok" | "Leader" | "Reachable" => "32",
            "down" | "unreachable" | "FAIL" | "Unreachable" => "31",
            "unknown" | "starting" | "draining" | "unhealthy" | "drain" | "pause" => "33",
            _ => return word.to_owned(),
        };
        self.wrap(colour, word)
    }

    /// For what stands above or before.
    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// One document, indented. An answer without content is an empty object.
pub fn json(value: &Value) -> Result<String, Failure> {
    if value.is_null() {
        return Ok("{}\n".to_owned());
    }
    Ok(format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// The ids in an answer, one a line.
pub fn ids(value: &Value) -> String {
    let one = |v: &Value| v.get("id").and_then(Value::as_str).map(|id| format!("{id}\n"));
    match value {
        Value::Array(items) => items.iter().filter_map(one).collect(),
        other => one(other).unwrap_or_default(),
    }
}

/// A table with left-aligned columns, each as wide as its widest cell.
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column titles.
    pub fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, a cell per column.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as text. Cells that are states are coloured after they are padded, so that colours
    /// do not disturb the columns.
    pub fn render(&self, paint: Paint) -> String {
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
            cells.chain([self.head[i].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let line = |cells: &[String], style: &dyn Fn(&str) -> String| {
            let mut out = String::new();
            for (i, cell) in cells.iter().enumerate() {
                let cell = printable(cell);
                out.push_str(&style(&cell));
                if i + 1 < cells.len() {
                    out.push_str(&" ".repeat(widths.get(i).map_or(0, |w| w.saturating_sub(cell.chars().count())) + 3));
                }
            }
            format!("{}\n", out.trim_end())
        };
        let head: Vec<String> = self.head.iter().map(ToString::to_string).collect();
        let mut out = line(&head, &|c| paint.bold(c));
        for row in &self.rows {
            out.push_str(&line(row, &|c| paint.state(c)));
        }
        out
    }
}

/// An object as text for people: a line per field, lists and inner objects indented below theirs.
pub fn describe(value: &Value, paint: Paint) -> String {
    let mut out = String::new();
    fields(&mut out, value, 0, paint);
    out
}

fn fields(out: &mut String, value: &Value, depth: usize, paint: Paint) {
    let Value::Object(map) = value else { return };
    let width = map.keys().map(|k| k.len()).max().unwrap_or(0) + 1;
    for (key, value) in map {
        let title = format!("{key}:");
        let pad = " ".repeat(width.saturating_sub(title.len()) + 1);
        let head = format!("{}{}", "  ".repeat(depth), paint.bold(&title));
        // Writing to a string does not fail.
        if let Some(text) = scalar(value) {
            let _ = writeln!(out, "{head}{pad}{}", paint.state(&text));
            continue;
        }
        let _ = writeln!(out, "{head}");
        match value {
            Value::Array(items) => items.iter().for_each(|item| bullet(out, item, depth + 1, paint)),
            _ => fields(out, value, depth + 1, paint),
        }
    }
}

/// An item of a list in one line: objects as `key=value` pairs.
fn bullet(out: &mut String, item: &Value, depth: usize, paint: Paint) {
    let text = match item {
        Value::Object(map) => {
            let pairs = map.iter().filter(|(_, v)| !v.is_null() && scalar(v).as_deref() != Some("-"));
            let pair = |(k, v): (&String, &Value)| format!("{k}={}", scalar(v).map_or_else(|| v.to_string(), |t| paint.state(&t)));
            pairs.map(pair).collect::<Vec<_>>().join("  ")
        }
        other => scalar(other).unwrap_or_else(|| other.to_string()),
    };
    let _ = writeln!(out, "{}- {text}", "  ".repeat(depth));
}

/// What fits behind a key: words, numbers, lists of words (not of sentences), and `-` for nothing.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("-".to_owned()),
        Value::String(s) if s.is_empty() => Some("-".to_owned()),
        Value::String(s) => Some(printable(s)),
        Value::Bool(true) => Some("yes".to_owned()),
        Value::Bool(false) => Some("no".to_owned()),
        Value::Number(n) => Some(n.to_string()),
        Value::Array(items) if items.is_empty() => Some("-".to_owned()),
        Value::Object(map) if map.is_empty() => Some("-".to_owned()),
        Value::Array(items) if items.iter().all(|i| i.as_str().is_some_and(|s| !s.contains(' '))) => {
            Some(items.iter().filter_map(Value::as_str).map(printable).collect::<Vec<_>>().join(", "))
        }
        Value::Array(_) | Value::Object(_) => None,
    }
}

/// Labels and the like come from users: what could steer a terminal does not reach it.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PLAIN: Paint = Paint { on: false };

    #[test]
    fn columns_line_up_with_and_without_colour() {
        let mut table = Table::new(&["ID", "STATUS", "NAME"]);
        table.row(vec!["a".into(), "ready".into(), "x".into()]);
        table.row(vec!["bbbb".into(), "down".into(), "é".into()]);
        let text = table.render(PLAIN);
        assert_eq!(text, "ID     STATUS   NAME\na      ready    x\nbbbb   down     é\n");
        let coloured = table.render(Paint { on: true });
        assert!(coloured.contains("\x1b[32mready\x1b[0m    x"), "{coloured:?}");
    }

    #[test]
    fn objects_read_as_text_in_their_own_order() {
        let value = json!({"name": "web", "id": "x", "none": null, "labels": {"a": "b"}, "aliases": ["p", "q"], "ports": [{"published": 8888, "mode": "ingress"}], "internal": false, "errors": ["no such device"]});
        let text = describe(&value, PLAIN);
        assert_eq!(
            text,
            "name:     web\nid:       x\nnone:     -\nlabels:\n  a: b\naliases:  p, q\nports:\n  - published=8888  mode=ingress\ninternal: no\nerrors:\n  - no such device\n"
        );
    }

    #[test]
    fn ids_of_lists_and_objects() {
        assert_eq!(ids(&json!([{"id": "a"}, {"id": "b"}])), "a\nb\n");
        assert_eq!(ids(&json!({"id": "a", "name": "n"})), "a\n");
        assert_eq!(ids(&json!(null)), "");
    }

    #[test]
    fn nothing_from_a_label_steers_the_terminal() {
        let text = describe(&json!({"labels": {"a": "\x1b[2Jboo\n"}}), PLAIN);
        assert!(!text.contains('\x1b') && text.lines().count() == 2, "{text:?}");
    }
}
