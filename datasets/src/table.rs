//! Files of records: JSON lines, JSON, CSV with a header and Parquet, the first three also packed with gzip or zstd.

use bitsmith_formats::{Error, Result};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::{Map, Value};
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Endings of files that [`read`] reads.
pub const ENDINGS: [&str; 8] = [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".jsonl.zst", ".csv.gz", ".json.gz"];

/// What a packed file may unpack to: so many times its own size, which text never reaches, and at most 4 GiB.
const MAX_RATIO: u64 = 200;
/// What any packed file may unpack to, however small it is.
const MIN_UNPACKED: u64 = 16 << 20;
const MAX_UNPACKED: u64 = 4 << 30;

/// A file's name without the ending that says what it holds; nothing if its ending is none of [`ENDINGS`].
pub fn stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?;
    let lower = name.to_ascii_lowercase();
    ENDINGS.iter().filter(|e| lower.ends_with(**e)).map(|e| &name[..name.len() - e.len()]).min_by_key(|s| s.len())
}

/// The records of a file, each an object.
///
/// Errors: missing, unsupported for other endings, corrupt with the line or row for what is no record.
pub fn read(path: &Path) -> Result<Vec<Value>> {
    let lower = path.to_string_lossy().to_ascii_lowercase();
    if lower.ends_with(".parquet") {
        return parquet(path);
    }
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    let (inner, bytes) = match (lower.strip_suffix(".gz"), lower.strip_suffix(".zst")) {
        (Some(inner), _) => (inner, unpack(path, bytes.len(), flate2::read::MultiGzDecoder::new(bytes.as_slice()))?),
        (_, Some(inner)) => {
            let decoder = zstd::stream::read::Decoder::new(bytes.as_slice()).map_err(|e| Error::read(path, e))?;
            (inner, unpack(path, bytes.len(), decoder)?)
        }
        _ => (lower.as_str(), bytes),
    };
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::corrupt(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())).file(path).hint("convert the file to UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let ending = inner.rsplit_once('.').map_or("", |(_, e)| e);
    let records = match ending {
        "jsonl" => json_lines(text),
        "json" => json(text),
        "csv" => csv(text),
        _ => {
            return Err(Error::unsupported("the file's ending does not say what records it holds")
                .file(path)
                .hint(format!("records come in {}", ENDINGS.join(", "))));
        }
    };
    records.map_err(|message| Error::corrupt(message).file(path))
}

fn unpack(path: &Path, packed_len: usize, packed: impl Read) -> Result<Vec<u8>> {
    let most = (packed_len as u64).saturating_mul(MAX_RATIO).clamp(MIN_UNPACKED, MAX_UNPACKED);
    let mut bytes = Vec::new();
    packed
        .take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::corrupt(format!("cannot be unpacked: {e}")).file(path).with_source(e))?;
    if bytes.len() as u64 > most {
        return Err(Error::corrupt(format!("its {packed_len} bytes unpack to more than {most}"))
            .file(path)
            .hint("no text is packed so tightly: unpack it yourself if you trust it"));
    }
    Ok(bytes)
}

fn json_lines(text: &str) -> Result<Vec<Value>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| object(line).map_err(|e| format!("line {}: {e}", i + 1))).collect()
}

fn object(line: &str) -> Result<Value, String> {
    match serde_json::from_str(line) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("not a JSON object".into()),
        Err(e) => Err(format!("not valid JSON: {e}")),
    }
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Array(records)) => match records.iter().position(|r| !r.is_object()) {
            None => Ok(records),
            Some(i) => Err(format!("record {} is not a JSON object", i + 1)),
        },
        Ok(_) => Err("not a JSON list of objects".into()),
        Err(e) => Err(format!("not valid JSON: {e}")),
    }
}

fn csv(text: &str) -> Result<Vec<Value>, String> {
    let mut rows = csv_rows(text)?.into_iter();
    let (_, header) = rows.next().ok_or("no header")?;
    let record = |(line, row): (usize, Vec<String>)| {
        if row.len() != header.len() {
            return Err(format!("line {line}: {} fields where the header has {}", row.len(), header.len()));
        }
        Ok(Value::Object(header.iter().cloned().zip(row.into_iter().map(Value::from)).collect::<Map<_, _>>()))
    };
    rows.map(record).collect()
}

/// Rows of fields with the line that each begins at (RFC 4180): fields in quotes may hold commas, line ends and doubled quotes. Quotes
/// that stand single in the middle of such a field are meant as they stand, as tables in the wild have them.
fn csv_rows(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let ends = |c: Option<char>| matches!(c, None | Some(',' | '\r' | '\n'));
    let (mut rows, mut row, mut field) = (Vec::new(), Vec::new(), String::new());
    // A field is loose once it has held a single quote: then a doubled one at its end is a single one and the end.
    let (mut quoted, mut loose, mut line, mut start) = (false, false, 1, 1);
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let mut after = rest.chars();
        let next = after.next();
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && next == Some('"') => {
                field.push('"');
                if !(loose && ends(after.next())) {
                    rest = &rest[1..];
                }
            }
            '"' if quoted && !ends(next) => {
                field.push('"');
                loose = true;
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            _ if quoted => field.push(c),
            ',' => {
                row.push(std::mem::take(&mut field));
                loose = false;
            }
            '\r' if next == Some('\n') => {}
            '\n' => {
                row.push(std::mem::take(&mut field));
                // An empty line is no row.
                if row != [""] {
                    rows.push((start, std::mem::take(&mut row)));
                }
                row.clear();
                (loose, start) = (false, line);
            }
            c => field.push(c),
        }
    }
    if quoted {
        return Err(format!("line {start}: a quote is not closed"));
    }
    if !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push((start, row));
    }
    Ok(rows)
}

fn parquet(path: &Path) -> Result<Vec<Value>> {
    let file = std::fs::File::open(path).map_err(|e| Error::read(path, e))?;
    let failed = |e| Error::corrupt(format!("not a readable Parquet file: {e}")).file(path);
    let len = file.metadata().map_err(|e| Error::read(path, e))?.len();
    let read = || {
        let reader = SerializedFileReader::new(file).map_err(failed)?;
        check_sizes(reader.metadata(), len).map_err(|e| e.file(path))?;
        let rows = reader.get_row_iter(None).map_err(failed)?;
        rows.map(|row| row.map(|r| r.to_json_value()).map_err(failed)).collect()
    };
    // The library panics where damage surprises it.
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(Error::corrupt("not a readable Parquet file: it is damaged").file(path)))
}

/// What a file promises to unpack to must be in proportion to its size.
fn check_sizes(metadata: &ParquetMetaData, len: u64) -> Result<()> {
    let most = len.saturating_mul(MAX_RATIO).clamp(MIN_UNPACKED, MAX_UNPACKED);
    let groups = metadata.row_groups().iter();
    let promised = groups.fold(0i64, |sum, g| sum.saturating_add(g.total_byte_size()).saturating_add(g.num_rows()));
    if u64::try_from(promised).is_ok_and(|n| n <= most) {
        return Ok(());
    }
    Err(Error::corrupt(format!("its {len} bytes are said to unpack to {promised}, more than {most}"))
        .hint("no table is packed so tightly: write it anew if you trust it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_formats::ErrorKind;
    use serde_json::json;
    use std::io::Write;

    fn file(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> std::path::PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn text_formats_plain_and_packed() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "{\"a\": 1}\n\n{\"a\": 2}\n";
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(lines.as_bytes()).unwrap();
        let want = vec![json!({"a": 1}), json!({"a": 2})];
        for (name, bytes) in [
            ("x.jsonl", lines.as_bytes().to_vec()),
            ("x.jsonl.gz", gz.finish().unwrap()),
            ("x.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap()),
            ("x.json", b"[{\"a\": 1}, {\"a\": 2}]".to_vec()),
        ] {
            assert_eq!(read(&file(&dir, name, &bytes)).unwrap(), want, "{name}");
            assert_eq!(stem(&dir.path().join(name)), Some("x"));
        }
        let csv = file(&dir, "t.csv", "\u{feff}q,A\n\"one, \"\"two\"\"\nthree\",4\n".as_bytes());
        assert_eq!(read(&csv).unwrap(), [json!({"q": "one, \"two\"\nthree", "A": "4"})]);
        let loose = file(&dir, "l.csv", b"a,b\n\"say \"yes,\" or\",1\n\"the \"end\"\",2\n\"a \"\"b\"\"\",3\n");
        let rows =
            [json!({"a": "say \"yes,\" or", "b": "1"}), json!({"a": "the \"end\"", "b": "2"}), json!({"a": "a \"b\"", "b": "3"})];
        assert_eq!(read(&loose).unwrap(), rows);
        let plain = file(&dir, "u.csv", b"a,b\r\n1,\r\n\r\n\"\",3");
        assert_eq!(read(&plain).unwrap(), [json!({"a": "1", "b": ""}), json!({"a": "", "b": "3"})]);
        assert_eq!(stem(Path::new("x.txt")), None);
    }

    #[test]
    fn parquet_rows_with_lists_and_structures() {
        let rows = read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/questions.parquet"))).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(
            rows[0],
            json!({"question": "Which is wet?", "choices": {"text": ["Water", "Sand"], "label": ["A", "B"]}, "answer": 0, "score": 0.5, "note": null})
        );
    }

    #[test]
    fn bombs_do_not_go_off() {
        let dir = tempfile::tempdir().unwrap();
        let zeros = vec![b' '; 64 << 20];
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gz.write_all(&zeros).unwrap();
        for (name, bytes) in [("x.jsonl.zst", zstd::encode_all(&zeros[..], 19).unwrap()), ("x.jsonl.gz", gz.finish().unwrap())] {
            assert!(bytes.len() < 1 << 17, "{name}");
            let e = read(&file(&dir, name, &bytes)).unwrap_err();
            assert!(e.kind == ErrorKind::Corrupt && e.message.contains("unpack to more than"), "{e}");
        }
    }

    #[test]
    fn damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes, says) in [
            ("a.jsonl", &b"{\"a\": 1}\n[2]\n"[..], "line 2: not a JSON object"),
            ("b.jsonl", b"{\"a\"", "line 1: not valid JSON"),
            ("c.json", b"{}", "not a JSON list"),
            ("d.json", b"[1]", "record 1"),
            ("e.csv", b"a,b\n1\n", "line 2: 1 fields where the header has 2"),
            ("i.csv", b"a\n\"x\n", "line 2: a quote is not closed"),
            ("f.jsonl.gz", b"nonsense", "cannot be unpacked"),
            ("g.parquet", b"PAR1 and then nothing", "Parquet"),
            ("h.jsonl", b"\xff", "UTF-8"),
        ] {
            let e = read(&file(&dir, name, bytes)).unwrap_err();
            assert_eq!(e.kind, ErrorKind::Corrupt, "{name}");
            assert!(e.message.contains(says), "{name}: {e}");
        }
        assert_eq!(read(&file(&dir, "x.txt", b"")).unwrap_err().kind, ErrorKind::Unsupported);
        assert_eq!(read(Path::new("/nowhere/x.jsonl")).unwrap_err().kind, ErrorKind::Missing);
    }
}
