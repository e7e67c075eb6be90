//! Our own documents, told apart by their keys.

use crate::report::{Report, ReportRow};
use crate::results::EvalResult;
use bitsmith_formats::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What `run --json` prints.
#[derive(Deserialize)]
struct Outcome {
    artifacts: Vec<Artifact>,
    eval: Vec<EvalResult>,
}

#[derive(Deserialize)]
struct Artifact {
    target: String,
    #[serde(default)]
    method: String,
    bytes: u64,
    bpw: f64,
    seconds: Option<f64>,
    peak_rss_bytes: Option<u64>,
}

pub(super) fn read(text: &str, _name: &str) -> Option<Result<Report>> {
    let json: Value = serde_json::from_str(text).ok()?;
    let has = |keys: &[&str]| keys.iter().all(|k| json.get(k).is_some());
    Some(match () {
        () if has(&["model", "rows"]) => parsed(json),
        () if has(&["artifacts", "eval"]) => parsed(json).map(of_outcome),
        () if has(&["codecs", "entries"]) => parsed(json).map(Report::of_map),
        () if has(&["recipe", "bytes", "quality"]) => of_manifest(&json),
        () if has(&["model", "perplexity"]) => parsed(json).map(of_eval),
        () => return None,
    })
}

fn parsed<T: DeserializeOwned>(json: Value) -> Result<T> {
    serde_json::from_value(json).map_err(|e| Error::corrupt(format!("not the results that it looks like: {e}")))
}

fn of_eval(eval: EvalResult) -> Report {
    let mut report = Report::default();
    report.add(eval);
    report
}

fn of_outcome(outcome: Outcome) -> Report {
    let mut evals = outcome.eval.into_iter();
    let mut rows: Vec<ReportRow> = evals.next().map(ReportRow::of).into_iter().collect();
    let model = rows.first().map(|r| r.target.clone()).unwrap_or_default();
    rows.extend(outcome.artifacts.into_iter().zip(evals).map(|(a, eval)| ReportRow {
        target: a.target,
        method: a.method,
        bytes: Some(a.bytes),
        bpw: Some(a.bpw),
        seconds: a.seconds,
        peak_rss_bytes: a.peak_rss_bytes.filter(|b| *b > 0),
        eval,
    }));
    Report { model, rows, ..Report::default() }
}

fn of_manifest(json: &Value) -> Result<Report> {
    let eval: EvalResult = match &json["quality"] {
        Value::Null => return Err(Error::corrupt("the artifact was never evaluated").hint("use `bitsmith eval` and its -o FILE")),
        quality => parsed(quality.clone())?,
    };
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let row = ReportRow {
        target: text(&json["recipe"]["target"]),
        method: text(&json["recipe"]["method"]),
        bytes: json["bytes"].as_u64(),
        bpw: json["bpw"].as_f64(),
        seconds: json["seconds"].as_f64(),
        peak_rss_bytes: None,
        eval,
    };
    Ok(Report { model: row.eval.model.clone(), rows: vec![row], ..Report::default() })
}
