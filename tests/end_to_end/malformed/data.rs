//! Text, records, plans, recipes, results, and what stands beside artifacts.

use super::{Row, row};
use crate::support::Work;
use crate::tiny::LLAMA;
use serde_json::json;
use std::fs;

/// A model and a file, and a line about both.
fn with(work: &Work, file: &str, contents: impl AsRef<[u8]>, line: &str) -> String {
    LLAMA.write(work, "model");
    work.write(file, contents);
    line.into()
}

const CALIBRATE: &str = "calibrate model --samples 2 --ctx 32 -o x.stats --calib";
const TASK: &str = "eval model --tasks t.toml";
const DEFINITION: &str = "name = 't'\ndata = 't.jsonl'\nprompt = '{{ q }}'\nanswer = 'a'\n";

/// A task over records in this file.
fn with_records(work: &Work, file: &str, contents: impl AsRef<[u8]>) -> String {
    work.write("t.toml", DEFINITION.replace("t.jsonl", file));
    with(work, file, contents, TASK)
}

/// An artifact with a list of checksums beside it.
fn with_sums(work: &Work, sums: &str, line: &str) -> String {
    LLAMA.write(work, "dense");
    work.ok("quantize dense --to gguf:q4_0 --method rtn --release --license mit -o out/");
    fs::remove_dir_all(work.path("dense")).unwrap();
    work.write("secret", "secret");
    work.write("out/SHA256SUMS", sums);
    line.into()
}

pub fn rows() -> Vec<Row> {
    let zeros = "0".repeat(64);
    let outside = move |name: &str| format!("{zeros}  {name}\n");
    let (up, root) = (outside("../secret"), outside("/etc/passwd"));
    vec![
        row("text that is no UTF-8", 65, "x.txt", "byte 2", |w| with(w, "x.txt", b"ab\xff\xfe", &format!("{CALIBRATE} x.txt"))),
        row("a file without text", 65, "x.txt", "no text", |w| with(w, "x.txt", " \n", &format!("{CALIBRATE} x.txt"))),
        row("lines that are no JSON", 65, "x.jsonl", "line 2", |w| {
            with(w, "x.jsonl", "{\"text\": \"a\"}\n{\"text\": ", &format!("{CALIBRATE} x.jsonl"))
        }),
        row("text that is nested too deep", 65, "x.jsonl", "line 1", |w| {
            with(w, "x.jsonl", "[".repeat(500_000), &format!("{CALIBRATE} x.jsonl"))
        }),
        row("records that unpack without end", 65, "t.jsonl.zst", "unpack to more than", |w| {
            with_records(w, "t.jsonl.zst", zstd::encode_all(&vec![b' '; 256 << 20][..], 1).unwrap())
        }),
        row("records that are no archive", 65, "t.jsonl.gz", "unpacked", |w| with_records(w, "t.jsonl.gz", "nonsense")),
        row("a table that is no table", 65, "t.parquet", "Parquet", |w| {
            with_records(w, "t.parquet", b"PAR1 and then nothing PAR1")
        }),
        row("a task with a word too many", 2, "t.toml", "colour", |w| {
            with(w, "t.toml", format!("{DEFINITION}colour = 'blue'\n"), TASK)
        }),
        row("a task whose template fails", 2, "t.jsonl", "nothing", |w| {
            w.write("t.jsonl", "{\"q\": \"x\", \"a\": \"y\"}\n");
            with(w, "t.toml", DEFINITION.replace("{{ q }}", "{{ nothing }}"), TASK)
        }),
        row("a task without its records", 66, "t.jsonl", "", |w| with(w, "t.toml", DEFINITION, TASK)),
        row("a plan that is no TOML", 65, "p.toml", "[tensors]", |w| {
            with(w, "p.toml", "[tensors\nattn_v = ", "quantize model --to gguf:q4_0 --method rtn --plan p.toml -o d.gguf")
        }),
        row("a plan with a format that nobody knows", 69, "p.toml", "q9", |w| {
            with(w, "p.toml", "[tensors]\nattn_v = 'q9'", "quantize model --to gguf:q4_0 --method rtn --plan p.toml -o d.gguf")
        }),
        row("a recipe with a flag that is not there", 2, "r.toml", "colour", |w| {
            with(w, "r.toml", "to = ['gguf:q4_0']\ncolour = 'blue'\n", "run model --recipe r.toml --out out")
        }),
        row("a recipe nested too deep", 2, "r.toml", "", |w| {
            with(w, "r.toml", format!("to = {}", "[".repeat(50_000)), "run model --recipe r.toml --out out")
        }),
        row("results that are none", 65, "r.json", "no results", |w| with(w, "r.json", "{}", "compare r.json")),
        row("results that are nested too deep", 65, "r.json", "no results", |w| {
            with(w, "r.json", "{\"perplexity\":".repeat(100_000), "compare r.json")
        }),
        row("tokens that are none", 65, "t.json", "token sequences", |w| {
            with(w, "t.json", "{\"sequences\": [[-1]]}", "logits model --tokens t.json")
        }),
        row("tokens beyond the vocabulary", 65, "t.json", "", |w| {
            with(w, "t.json", json!({"sequences": [[1, 4_000_000_000u32]]}).to_string(), "logits model --tokens t.json")
        }),
        row("a reference that is cut short", 65, "r.bsref", "stored reference", |w| {
            LLAMA.write(w, "model");
            w.ok("eval model --kld builtin --against model --ctx 64 --limit 2 --save-reference r.bsref");
            let _ = fs::remove_dir_all(w.path("cache"));
            let bytes = fs::read(w.path("r.bsref")).unwrap();
            w.write("r.bsref", &bytes[..bytes.len() - 9]);
            "eval model --kld builtin --ctx 64 --limit 2 --against r.bsref".into()
        }),
        row("checksums of a file outside", 65, "SHA256SUMS", "outside the folder", move |w| {
            with_sums(w, &up, "publish out --repo a/b --dry-run")
        }),
        row("checksums of a file at the root", 65, "SHA256SUMS", "outside the folder", move |w| {
            with_sums(w, &root, "publish out --repo a/b --dry-run")
        }),
        row("a manifest that is none", 65, "d.gguf.bitsmith.json", "manifest", |w| {
            LLAMA.write(w, "dense");
            w.ok("quantize dense --to gguf:q4_0 --method rtn -o d.gguf");
            w.write("d.gguf.bitsmith.json", "{\"schema\": ");
            "verify d.gguf".into()
        }),
        row("a model that has changed since", 65, "d.gguf", "contents have changed", |w| {
            LLAMA.write(w, "dense");
            w.ok("quantize dense --to gguf:q4_0 --method rtn -o d.gguf");
            let mut bytes = fs::read(w.path("d.gguf")).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            w.write("d.gguf", bytes);
            "verify d.gguf".into()
        }),
    ]
}
