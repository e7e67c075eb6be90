//! Tasks, results, tables of records, stored references.

use super::{tree, with_file};
use bitsmith_datasets::table;
use bitsmith_eval::store::Store;
use bitsmith_eval::{sources, tasks};

/// A task, and what it makes of a record.
pub fn run_task(data: &[u8]) {
    with_file("task.toml", data, |path| {
        if let Ok(task) = tasks::custom::read(path) {
            let record = serde_json::json!({"q": "Why?", "o": {"text": ["a", "b"]}, "gold": 1, "a": "b"});
            let _ = task.items(&[record]);
        }
    });
}

/// One of every kind.
pub fn task_seeds() -> Vec<Vec<u8>> {
    [
        "name = 'c'\ndata = 'c.jsonl'\nprompt = 'Q: {{ q }}\\nA:'\nchoices = 'o.text'\nanswer = 'gold'\nfewshot = 2\n",
        "name = 'w'\ndata = 'c.jsonl'\nprompt = '{{ q }}'\nanswer = 'a'\nmax-tokens = 8\nuntil = [\"\\n\"]\nextract = '\\d+'\nignore = ['x']\n",
        "name = 'k'\nprompt = '{{ q }}'\nanswer = 'a'\nmetrics = ['perplexity']\n[hub]\nrepo = 'a/b'\nsplit = 'test'\n",
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}

/// Results of any tool.
pub fn run_results(data: &[u8]) {
    with_file("r.json", data, |path| {
        if let Ok(report) = sources::read(&[path]) {
            let _ = report.to_text();
        }
    });
}

/// Our own, lm-evaluation-harness's, llama.cpp's.
pub fn results_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"model":"m","perplexity":[{"data":"d","ctx":512,"style":"llama.cpp","tokens":9,"nll":1.0,"ppl":2.7,"stderr":0.1,"windows":1,"sha256":""}],"kld":[],"tasks":[]}"#,
        r#"{"results":{"hellaswag":{"alias":"hellaswag","acc,none":0.5,"acc_stderr,none":0.05}},"n-samples":{"hellaswag":{"original":9,"effective":9}},"config":{"model":"hf","model_args":"pretrained=org/tiny"}}"#,
        "perplexity: calculating perplexity over 8 chunks, n_ctx=256, batch_size=512\nllama_model_loader: loaded meta data from /m/x.gguf (version)\nprint_info: file size = 3.59 GiB (4.95 BPW)\n[1]4.1,\nFinal estimate: PPL = 5.9567 +/- 0.03322\n",
        "kl_divergence: computing over 20 chunks, n_ctx=512\nMean PPL(Q) : 6.4 ± 0.03\nMean PPL(base) : 6.2 ± 0.03\nMean PPL(Q)/PPL(base) : 1.02 ± 0.0005\nMean    KLD:   0.031273 ±   0.000238\nMaximum KLD:  17.2\n99.9%   KLD:   1.1\n99.0%   KLD:   0.2\n90.0%   KLD:   0.06\nMedian  KLD:   0.01\nRMS Δp    :  5.519 ± 0.050 %\nSame top p: 92.289 ± 0.070 %\n",
    ]
    .map(|s| s.as_bytes().to_vec())
    .to_vec()
}

/// Endings of tables that the first byte chooses from.
const ENDINGS: [&str; 6] = ["jsonl", "json", "csv", "parquet", "jsonl.gz", "jsonl.zst"];

/// A table of records.
pub fn run_records(data: &[u8]) {
    let Some((&choice, data)) = data.split_first() else { return };
    with_file(&format!("t.{}", ENDINGS[usize::from(choice) % ENDINGS.len()]), data, |path| {
        let _ = table::read(path);
    });
}

/// One of every ending.
pub fn records_seeds() -> Vec<Vec<u8>> {
    let lines = b"{\"a\": 1}\n\n{\"a\": \"x\", \"b\": [null]}\n";
    let parquet = std::fs::read(tree("datasets/tests/questions.parquet")).unwrap_or_default();
    let packed = zstd::encode_all(&lines[..], 1).unwrap_or_default();
    vec![
        [&[0], &lines[..]].concat(),
        [&[1], &b"[{\"a\": 1}, {\"a\": 2}]"[..]].concat(),
        [&[2], &b"q,A\n\"one, \"\"two\"\"\nthree\",4\r\nx,\n"[..]].concat(),
        [vec![3], parquet].concat(),
        [vec![5], packed].concat(),
    ]
}

/// A stored reference.
pub fn run_reference(data: &[u8]) {
    with_file("r.bsref", data, |path| {
        if let Ok(store) = Store::open(path) {
            for window in 0..store.header().windows.min(4) {
                let _ = store.window(window);
            }
        }
    });
}

/// A header, a frame and an index.
pub fn reference_seeds() -> Vec<Vec<u8>> {
    let header = br#"{"model":"m","data":"d","sha256":"","ctx":4,"style":"paper","vocab_size":80,"windows":1}"#;
    let mut inside = vec![0u8; 8];
    // Three scored tokens: likelihoods, tails, counts of likeliest and of sampled tokens, ids, and steps of probabilities.
    inside.extend([0; 12]);
    inside.extend([0xff; 6]);
    inside.extend([1, 0, 0, 0, 1, 0, 5, 7, 0, 0, 9, 9]);
    let frame = zstd::encode_all(&inside[..], 1).unwrap_or_default();
    let mut file = bitsmith_eval::store::MAGIC.to_vec();
    file.push(bitsmith_eval::store::VERSION);
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    let start = file.len() as u64;
    file.extend(&frame);
    let end = file.len() as u64;
    [start, end, end].iter().for_each(|n| file.extend(n.to_le_bytes()));
    vec![file]
}
