//! Results side by side: from models to tables, tests and figures.

use crate::support::Work;
use crate::tiny::LLAMA;
use serde_json::Value;
use std::fs;

const TEXT: &str = "--kld builtin --ctx 64 --limit 6";

#[test]
fn results_become_tables_and_figures() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    for (target, name) in [("gguf:q4_0", "q4"), ("gguf:q8_0", "q8")] {
        work.ok(&format!("quantize model --to {target} --method rtn -o {name}.gguf"));
        let result = work.json(&format!("eval {name}.gguf {TEXT} --against model -o {name}.json"));
        let landing = &result["kld"][0]["landing"];
        assert!(landing["passages"].as_array().is_some_and(|p| !p.is_empty()), "{landing}");
        let share: f64 = landing["positions"].as_array().unwrap().iter().map(|g| g["share"].as_f64().unwrap()).sum();
        assert!((share - 1.0).abs() < 1e-9);
    }
    work.write("log.txt", "perplexity: calculating perplexity over 6 chunks, n_ctx=64\nFinal estimate: PPL = 9.5 +/- 0.1\n");
    let document = work.json(
        "compare q4.json q8.json log.txt --csv all.csv --parquet all.parquet --latex all.tex --markdown all.md --html all.html --svg p.svg --png p.png --figures figs",
    );
    let rows = document["report"]["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["target"].as_str().unwrap()).collect::<Vec<_>>(), ["q4.gguf", "q8.gguf", "log"]);
    assert_eq!(document["summary"]["recommended"], "q8.gguf");
    // Eight bits are closer than four in every window: of 64 choices of signs only two are as extreme.
    let pair = &document["pairs"][0];
    assert_eq!((pair["windows"].as_u64(), pair["p_value"].as_f64()), (Some(6), Some(2.0 / 64.0)));
    let read = |name: &str| fs::read_to_string(work.path(name)).unwrap();
    assert_eq!(read("all.csv").lines().count(), 4);
    let parquet = fs::read(work.path("all.parquet")).unwrap();
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    assert!(read("all.tex").contains("\\toprule") && read("all.md").contains("| q4.gguf |"));
    assert!(read("all.html").contains("Worst passages") && read("p.svg").starts_with("<svg"));
    assert!(fs::read(work.path("p.png")).unwrap().starts_with(b"\x89PNG"));
    assert!(work.names("figs").iter().any(|n| n == "domains.svg"), "{:?}", work.names("figs"));
    let text = work.ok("compare q4.json q8.json").out;
    assert!(text.contains("q8.gguf is closer") && text.contains("Use q8.gguf"), "{text}");

    work.fails("compare missing.json", 66);
    work.write("odd.json", "{\"x\": 1}");
    assert!(work.fails("compare odd.json", 65)["hint"].as_str().unwrap().contains("llama-perplexity"));
    work.fails("compare log.txt --svg x.svg", 2);
}

#[test]
fn a_stored_reference_stands_for_the_model() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("quantize model --to gguf:q4_0 --method rtn -o q4.gguf");
    let exact = work.json(&format!("eval q4.gguf {TEXT} --against model --save-reference ref.bsref"));
    fs::remove_dir_all(work.path("model")).unwrap();
    let stored = work.json(&format!("eval q4.gguf {TEXT} --against ref.bsref"));
    let mean = |v: &Value| v["kld"][0]["mean"].as_f64().unwrap();
    assert!((mean(&stored) / mean(&exact) - 1.0).abs() < 0.2, "{} {}", mean(&stored), mean(&exact));
    assert_eq!(stored["perplexity"][0]["ppl"], exact["perplexity"][0]["ppl"]);
    assert_eq!(stored["kld"][0]["against"], exact["kld"][0]["against"]);
    // Other windows will not do.
    for line in ["--kld builtin --ctx 32 --limit 6", "--kld builtin --ctx 64 --limit 7"] {
        work.fails(&format!("eval q4.gguf {line} --against ref.bsref"), 2);
    }
    let whole = fs::read(work.path("ref.bsref")).unwrap();
    work.write("cut.bsref", &whole[..whole.len() / 2]);
    work.fails(&format!("eval q4.gguf {TEXT} --against cut.bsref"), 65);
}

#[test]
fn evaluations_are_remembered() {
    let work = Work::new();
    LLAMA.write(&work, "model");
    work.ok("quantize model --to gguf:q4_0 --method rtn -o q4.gguf");
    let line = format!("eval q4.gguf {TEXT} --against model");
    let first = work.ok(&line);
    assert!(!first.err.contains("remembered"), "{}", first.err);
    let second = work.ok(&line);
    assert!(second.err.contains("q4.gguf on builtin: remembered"), "{}", second.err);
    assert_eq!(first.out, second.out);
    assert!(!work.ok(&format!("{line} --fresh")).err.contains("remembered"));
    // Other windows, another cache, another model under the same name: each is computed.
    for other in ["--limit 5", "--kv q8_0"] {
        let line = line.replace("--limit 6", if other.starts_with("--limit") { other } else { "--limit 6" });
        let line = if other.starts_with("--kv") { format!("{line} {other}") } else { line };
        assert!(!work.ok(&line).err.contains("remembered"), "{other}");
    }
    fs::remove_file(work.path("q4.gguf")).unwrap();
    fs::remove_file(work.path("q4.gguf.bitsmith.json")).unwrap();
    work.ok("quantize model --to gguf:q5_0 --method rtn -o q4.gguf");
    assert!(!work.ok(&line).err.contains("remembered"));

    let all = work.json("compare --remembered q4");
    let rows = all["report"]["rows"].as_array().unwrap();
    assert!(rows.len() >= 2 && rows.iter().all(|r| r["target"].as_str().unwrap().contains("q4.gguf")), "{rows:?}");
    work.fails("compare --remembered nothing", 66);
    assert!(work.ok(&line).err.contains("q4.gguf on builtin: remembered"));
    // A database that cannot be read is a warning, and an error only where it is what was asked for.
    work.write("cache/bitsmith/results.sqlite", "no database");
    let ended = work.ok(&line);
    assert!(!ended.err.contains("builtin: remembered") && ended.err.contains("no result is remembered"), "{}", ended.err);
    work.fails("compare --remembered q4", 65);
}
