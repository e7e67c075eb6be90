//! Results on standard output: one JSON document, or text for people.

use bitsmith_formats::{Error, ErrorKind, Result};
use serde::Serialize;
use serde_json::json;
use std::io::{self, BufWriter, Write};

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Output as JSON or as text.
    pub fn new(json: bool) -> Self {
        Output { json }
    }

    /// Whether results are JSON.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Prints the result: `value` as JSON, or what `text` makes of it.
    pub fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
        if self.json {
            return self.document(value);
        }
        self.text(&text(value))
    }

    /// Prints text, whether JSON is asked for or not.
    pub fn text(self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(closed)
    }

    fn document<T: Serialize>(self, value: &T) -> Result<()> {
        let mut out = BufWriter::new(io::stdout().lock());
        serde_json::to_writer(&mut out, value).map_err(|e| closed(e.into()))?;
        out.write_all(b"\n").and_then(|()| out.flush()).map_err(closed)
    }

    /// With `--json`, an error is a document like any result.
    pub fn error(self, error: &Error) -> Result<()> {
        if self.json { self.document(&error_document(error)) } else { Ok(()) }
    }
}

/// The stable form of an error.
fn error_document(error: &Error) -> serde_json::Value {
    let file = error.file.as_ref().map(|f| f.display().to_string());
    json!({"error": {
        "kind": error.kind.name(), "message": error.message, "file": file, "tensor": error.tensor, "hint": error.remedy(),
    }})
}

fn closed(e: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("cannot write to standard output: {e}")).with_source(e)
}

/// Whether the error is that nobody reads standard output any more.
pub fn is_closed_pipe(error: &Error) -> bool {
    let source = error.source.as_ref().and_then(|s| s.downcast_ref::<io::Error>());
    error.kind == ErrorKind::Io && error.file.is_none() && source.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Lines of columns. Columns named in `right` are aligned to the right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .enumerate()
            .map(|(c, cell)| {
                let pad = " ".repeat(widths[c] - cell.chars().count());
                if right.contains(&c) { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A size for people.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_all_keys() {
        let document = error_document(&Error::corrupt("bad").file("x").tensor("t"));
        let expected = json!({"error": {"kind": "corrupt", "message": "bad", "file": "x", "tensor": "t", "hint": ErrorKind::Corrupt.remedy()}});
        assert_eq!(document, expected);
    }

    #[test]
    fn tables_align() {
        let row = |cells: [&str; 2]| cells.map(String::from).to_vec();
        assert_eq!(table(&[row(["name", "n"]), row(["a", "100"])], &[1]), "name    n\na     100\n");
    }

    #[test]
    fn sizes() {
        assert_eq!(human_bytes(100), "100 B");
        assert_eq!(human_bytes(3 << 30), "3.00 GiB");
    }

    #[test]
    fn closed_pipes() {
        assert!(is_closed_pipe(&closed(io::ErrorKind::BrokenPipe.into())));
        assert!(!is_closed_pipe(&closed(io::ErrorKind::StorageFull.into())));
        assert!(!is_closed_pipe(&Error::write("x", io::ErrorKind::BrokenPipe.into())));
    }
}
