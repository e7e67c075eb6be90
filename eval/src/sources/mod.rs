//! Results from files: our own and other tools', as rows of one report.

mod llama_cpp;
mod lm_eval;
mod ours;

use crate::report::Report;
use bitsmith_formats::{Error, Result};
use std::path::Path;

/// A kind of file that holds results.
struct Kind {
    /// What it is called in messages.
    name: &'static str,
    /// Its contents as a report, `name` being what the file calls itself by; nothing if the file is of another kind.
    read: fn(text: &str, name: &str) -> Option<Result<Report>>,
}

const KINDS: [Kind; 3] = [
    Kind { name: "bitsmith's results (eval, map, run, a manifest)", read: ours::read },
    Kind { name: "lm-evaluation-harness's results_*.json", read: lm_eval::read },
    Kind { name: "a log of llama-perplexity", read: llama_cpp::read },
];

/// Reads results of any kind and puts them into one report. Rows that would have the same name get their file's as well.
pub fn read(paths: &[impl AsRef<Path>]) -> Result<Report> {
    let mut all = Report::default();
    let mut files: Vec<String> = Vec::new();
    for path in paths {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // Logs may hold pieces of characters.
        let report = one(&String::from_utf8_lossy(&bytes), &name).map_err(|e| e.file(path))?;
        if all.model.is_empty() {
            all.model = report.model;
        }
        for fact in report.facts {
            if !all.facts.contains(&fact) {
                all.facts.push(fact);
            }
        }
        for row in report.rows {
            // The source of several reports is one row.
            let is_source = row.eval.kld.is_empty() && !row.eval.perplexity.is_empty();
            if !(is_source && all.rows.contains(&row)) {
                files.push(name.clone());
                all.rows.push(row);
            }
        }
        all.gates.extend(report.gates);
        all.notes.extend(report.notes);
        all.map = all.map.or(report.map);
    }
    let taken: Vec<String> = all.rows.iter().map(|r| r.target.clone()).collect();
    for (row, file) in all.rows.iter_mut().zip(&files) {
        if taken.iter().filter(|t| **t == row.target).count() > 1 {
            row.target = format!("{} ({file})", row.target);
        }
    }
    Ok(all)
}

fn one(text: &str, name: &str) -> Result<Report> {
    KINDS.iter().find_map(|k| (k.read)(text, name)).unwrap_or_else(|| {
        let known: Vec<&str> = KINDS.iter().map(|k| k.name).collect();
        Err(Error::corrupt("these are no results that can be read").hint(format!("known are: {}", known.join("; "))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::ReportRow;
    use crate::results::EvalResult;
    use bitsmith_formats::ErrorKind;

    const LOG: &str = "\
llama_model_loader: loaded meta data with 30 key-value pairs and 291 tensors from /models/tiny-Q4_K_M.gguf (version GGUF V3 (latest))
print_info: file type   = Q4_K - Medium
print_info: file size   = 3.59 GiB (4.95 BPW)
kl_divergence: computing over 20 chunks, n_ctx=512, batch_size=2048, n_seq=4
====== Perplexity statistics ======
Mean PPL(Q)                   :   6.407084 ±   0.039119
Mean PPL(base)                :   6.233160 ±   0.037828
Cor(ln(PPL(Q)), ln(PPL(base))):  99.64%
Mean ln(PPL(Q)/PPL(base))     :   0.027521 ±   0.000518
Mean PPL(Q)/PPL(base)         :   1.027903 ±   0.000532
Mean PPL(Q)-PPL(base)         :   0.173924 ±   0.003480

====== KL divergence statistics ======
Mean    KLD:   0.031273 ±   0.000238
Maximum KLD:  17.270807
99.9%   KLD:   1.101500
99.0%   KLD:   0.260000
95.0%   KLD:   0.100000
90.0%   KLD:   0.060000
Median  KLD:   0.012000
10.0%   KLD:   0.000100

====== Token probability statistics ======
Mean    Δp: -0.596 ± 0.014 %
RMS Δp    :  5.519 ± 0.050 %
Same top p: 92.289 ± 0.070 %
";

    #[test]
    fn logs_of_llama_perplexity() {
        let report = one(LOG, "q4").unwrap();
        let row = &report.rows[0];
        assert_eq!(row.target, "tiny-Q4_K_M.gguf");
        assert_eq!((row.bytes.unwrap() as f64 / f64::from(1 << 30) * 100.0).round(), 359.0);
        assert_eq!(row.bpw, Some(4.95));
        let kld = &row.eval.kld[0];
        let s = &kld.summary;
        assert_eq!((s.mean, s.mean_stderr, s.median, s.p90, s.p99, s.p999), (0.031273, 0.000238, 0.012, 0.06, 0.26, 1.1015));
        assert_eq!(
            (s.max, s.ppl_ratio, s.ppl_ratio_stderr, s.ppl, s.ppl_against),
            (17.270807, 1.027903, 0.000532, 6.407084, 6.23316)
        );
        assert!((s.same_top_p - 0.92289).abs() < 1e-12 && (s.rms_dp - 0.05519).abs() < 1e-12);
        assert_eq!((kld.ctx, s.tokens), (512, 20 * 255));
        let perplexity = one(
            "perplexity: calculating perplexity over 8 chunks, n_ctx=256, batch_size=512\n[1]4.1,\nFinal estimate: PPL = 5.9567 +/- 0.03322\n",
            "x",
        );
        let p = &perplexity.unwrap().rows[0].eval.perplexity[0].clone();
        assert_eq!((p.ppl, p.stderr, p.ctx, p.tokens, p.windows), (5.9567, 0.03322, 256, 8 * 127, 8));
    }

    #[test]
    fn results_of_the_harness() {
        let json = r#"{"results":{"hellaswag":{"alias":"hellaswag","acc,none":0.5,"acc_stderr,none":0.05,"acc_norm,none":0.6,"acc_norm_stderr,none":0.04},
            "gsm8k":{"exact_match,strict-match":0.1,"exact_match_stderr,strict-match":"N/A"}},
            "n-samples":{"hellaswag":{"original":10042,"effective":100}},"config":{"model":"hf","model_args":"pretrained=org/tiny,dtype=float32"}}"#;
        let report = one(json, "results").unwrap();
        let tasks = &report.rows[0].eval.tasks;
        assert_eq!(report.rows[0].target, "org/tiny");
        let named: Vec<(&str, &str, f64, f64, usize)> =
            tasks.iter().map(|t| (t.task.as_str(), t.metric.as_str(), t.value, t.stderr, t.n)).collect();
        assert_eq!(
            named,
            [
                ("hellaswag", "acc", 0.5, 0.05, 100),
                ("hellaswag", "acc_norm", 0.6, 0.04, 100),
                ("gsm8k", "exact_match,strict-match", 0.1, 0.0, 0)
            ]
        );
    }

    #[test]
    fn our_own_documents() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, json: serde_json::Value| {
            let path = dir.path().join(name);
            std::fs::write(&path, json.to_string()).unwrap();
            path
        };
        let eval = |model: &str| serde_json::to_value(EvalResult { model: model.into(), ..EvalResult::default() }).unwrap();
        let row = |target: &str| ReportRow { target: target.into(), bytes: Some(7), ..ReportRow::default() };
        let report = Report { model: "m".into(), rows: vec![row("source"), row("gguf:q8_0")], ..Report::default() };
        let outcome = serde_json::json!({ "artifacts": [{"target": "mlx:4bit", "method": "rtn", "bytes": 9, "bpw": 4.5, "seconds": 1.0}],
            "report": {}, "eval": [eval("src"), eval("mlx")], "gates": [] });
        let paths = [
            write("a.json", serde_json::to_value(&report).unwrap()),
            write("b.json", outcome),
            write("c.json", eval("some/model.gguf")),
            write("d.json", eval("some/model.gguf")),
            write("map.json", serde_json::to_value(crate::report::heat::tests::map(2)).unwrap()),
        ];
        let all = read(&paths).unwrap();
        let names: Vec<&str> = all.rows.iter().map(|r| r.target.as_str()).collect();
        assert_eq!(names, ["source", "gguf:q8_0", "src", "mlx:4bit", "model.gguf (c)", "model.gguf (d)"]);
        assert_eq!((all.model.as_str(), all.rows[3].bytes, all.rows[3].bpw), ("m", Some(9), Some(4.5)));
        assert_eq!(all.map.unwrap().entries.len(), 14);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "hello", "{}", "[1,2]", "{\"results\": 3}", "{\"perplexity\": 3, \"model\": \"x\"}"] {
            let e = one(text, "x").unwrap_err();
            assert_eq!(e.kind, ErrorKind::Corrupt, "{text}");
        }
        assert_eq!(read(&["/no/such/file"]).unwrap_err().kind, ErrorKind::Missing);
    }
}
