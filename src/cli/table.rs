//! What commands print for people: aligned columns, amounts in words, and nothing that drives a terminal.
//!
//! Everything that comes from a sandbox or its peers may be hostile (a DNS name, a flow's state); every cell is escaped.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::Value;

use super::{FAILURE, Failure, printable};

/// Writes `text` to stdout. A reader that has seen enough is no error.
pub fn output(text: &str) -> Result<u8, Failure> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure { code: FAILURE, line: format!("cannot write the output: {error}") })
        }
        _ => Ok(0),
    }
}

/// One line of JSON.
pub fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// On which side of its column a cell stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Texts.
    Left,
    /// Numbers.
    Right,
}

/// Rows under headings.
#[derive(Clone, Debug)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty one.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row, one cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The text, two spaces between columns, none at a line's end.
    pub fn render(&self) -> String {
        let head: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).chain(head.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in std::iter::once(&head).chain(&self.rows) {
            let mut written = String::new();
            for ((cell, &(_, side)), &width) in row.iter().zip(&self.columns).zip(&widths) {
                // Writing to a String cannot fail.
                let _ = match side {
                    Side::Left => write!(written, "{cell:<width$}  "),
                    Side::Right => write!(written, "{cell:>width$}  "),
                };
            }
            text.push_str(written.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Bytes, in three digits or four.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut amount = count as f64;
    let mut unit = "";
    for next in UNITS {
        amount /= 1024.0;
        unit = next;
        if amount < 999.95 {
            break;
        }
    }
    if amount < 99.95 { format!("{amount:.1} {unit}") } else { format!("{amount:.0} {unit}") }
}

/// A time span in its two largest units.
pub fn span(seconds: f64) -> String {
    if seconds.is_nan() || seconds < 0.0 {
        return "-".to_owned();
    }
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let whole = seconds.round() as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{whole}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", whole % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        _ => format!("{days}d{hours:02}h"),
    }
}

/// A value in a cell: texts bare, lists with commas, nothing as `-`.
pub fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| format!("{key} {}", cell(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
    }
}

/// An object as `name  value` lines; objects within it have names of two words, and more.
pub fn fields(value: &Value) -> String {
    fn collect(name: &str, value: &Value, rows: &mut Vec<(String, String)>) {
        match value {
            Value::Object(entries) if !entries.is_empty() => {
                for (key, value) in entries {
                    let key = key.replace('_', " ");
                    let name = if name.is_empty() { key } else { format!("{name} {key}") };
                    collect(&name, value, rows);
                }
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                for item in items {
                    rows.push((name.to_owned(), cell(item)));
                }
            }
            value => rows.push((name.to_owned(), cell(value))),
        }
    }
    let mut rows = Vec::new();
    collect("", value, &mut rows);
    rows.retain(|(name, _)| !name.is_empty());
    let width = rows.iter().map(|(name, _)| printable(name).chars().count()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{:<width$}  {}", printable(name), printable(value));
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&[("NAME", Side::Left), ("BYTES", Side::Right), ("STATE", Side::Left)]);
        table.row(["é".to_owned(), "5".to_owned(), String::new()]);
        table.row(["longer".to_owned(), "123456".to_owned(), "a\x1b[2J\nb".to_owned()]);
        assert_eq!(table.render(), "NAME     BYTES  STATE\né            5\nlonger  123456  a\\u{1b}[2J\\nb\n");
        assert_eq!(Table::new(&[("A", Side::Left)]).render(), "A\n");
    }

    #[test]
    fn amounts() {
        for (count, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (102_348, "99.9 KiB"),
            (102_400, "100 KiB"),
            (1_048_575, "1.0 MiB"),
            (1 << 30, "1.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
        for (seconds, text) in [
            (0.04, "0.0s"),
            (9.94, "9.9s"),
            (9.96, "10s"),
            (59.4, "59s"),
            (61.0, "1m01s"),
            (7384.0, "2h03m"),
            (90_000.0, "1d01h"),
            (-1.0, "-"),
            (f64::NAN, "-"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn objects_become_lines() {
        let value = json!({ "name": "a\nb", "ipv4": { "guest": "10.0.2.100", "dns_server": null }, "on": true,
            "stages": [{ "stage": "pid", "done": false }], "pids": [1, 2], "none": [] });
        assert_eq!(
            fields(&value),
            "ipv4 dns server  -\nipv4 guest       10.0.2.100\nname             a\\nb\nnone             -\n\
             on               yes\npids             1, 2\nstages           done no, stage pid\n"
        );
        assert_eq!(fields(&json!({})), "");
    }
}
