//! One row per artifact and text, with all numbers and no formatting: for spreadsheets and data frames.

use super::{Report, ReportRow};
use crate::results::{Kld, Perplexity};

/// A value of a tidy table.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// There is none.
    Absent,
    /// A name.
    Text(String),
    /// A number.
    Number(f64),
}

/// A tidy table: names of columns, and rows of as many values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tidy {
    /// Names of columns.
    pub columns: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<Value>>,
}

impl Tidy {
    /// Of a report.
    pub fn of(report: &Report) -> Tidy {
        let records: Vec<Vec<(String, Value)>> = report.rows.iter().flat_map(|r| rows(&report.model, r)).collect();
        let mut columns: Vec<String> = Vec::new();
        for (name, _) in records.iter().flatten() {
            if !columns.contains(name) {
                columns.push(name.clone());
            }
        }
        let value = |record: &Vec<(String, Value)>, name: &String| {
            record.iter().find(|(n, _)| n == name).map_or(Value::Absent, |(_, v)| v.clone())
        };
        let rows = records.iter().map(|r| columns.iter().map(|c| value(r, c)).collect()).collect();
        Tidy { columns, rows }
    }

    /// As CSV (RFC 4180).
    pub fn to_csv(&self) -> String {
        let quote = |s: &str| match s.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", s.replace('"', "\"\"")),
            false => s.to_string(),
        };
        let text = |v: &Value| match v {
            Value::Absent => String::new(),
            Value::Text(s) => quote(s),
            Value::Number(n) => n.to_string(),
        };
        let mut out = self.columns.iter().map(|c| quote(c)).collect::<Vec<_>>().join(",") + "\n";
        for row in &self.rows {
            out += &(row.iter().map(text).collect::<Vec<_>>().join(",") + "\n");
        }
        out
    }
}

/// A row for each text that the artifact was measured on; one with its size and tasks if there is none.
fn rows(model: &str, row: &ReportRow) -> Vec<Vec<(String, Value)>> {
    let ppl = &row.eval.perplexity;
    let same = |p: &Perplexity, k: &Kld| (&p.data, &p.sha256, p.ctx, p.style) == (&k.data, &k.sha256, k.ctx, k.style);
    let mut texts: Vec<(Option<&Perplexity>, Option<&Kld>)> =
        ppl.iter().map(|p| (Some(p), row.eval.kld.iter().find(|k| same(p, k)))).collect();
    texts.extend(row.eval.kld.iter().filter(|k| !ppl.iter().any(|p| same(p, k))).map(|k| (None, Some(k))));
    if texts.is_empty() {
        texts.push((None, None));
    }
    texts.into_iter().map(|(p, k)| record(model, row, p, k)).collect()
}

fn record(model: &str, row: &ReportRow, ppl: Option<&Perplexity>, kld: Option<&Kld>) -> Vec<(String, Value)> {
    let text = |s: &str| if s.is_empty() { Value::Absent } else { Value::Text(s.to_string()) };
    let number = |n: Option<f64>| n.filter(|n| n.is_finite()).map_or(Value::Absent, Value::Number);
    let mut out: Vec<(String, Value)> = Vec::new();
    let mut add = |name: &str, value: Value| out.push((name.to_string(), value));
    add("model", text(model));
    add("target", text(&row.target));
    add("method", text(&row.method));
    add("bytes", number(row.bytes.map(|b| b as f64)));
    add("bpw", number(row.bpw));
    add("seconds", number(row.seconds));
    add("peak_rss_bytes", number(row.peak_rss_bytes.map(|b| b as f64)));
    add("kv", text(&row.eval.kv.to_string()));
    let data = ppl.map(|p| (&p.data, &p.sha256, p.ctx, p.style)).or(kld.map(|k| (&k.data, &k.sha256, k.ctx, k.style)));
    if let Some((data, sha256, ctx, style)) = data {
        add("data", text(data));
        add("data_sha256", text(sha256));
        add("ctx", number(Some(ctx as f64)));
        add("style", text(&style.to_string()));
    }
    let (p, s) = (ppl, kld.map(|k| &k.summary));
    add("tokens", number(p.map(|p| p.tokens).or(s.map(|s| s.tokens)).map(|n| n as f64)));
    add("ppl", number(p.map(|p| p.ppl)));
    add("ppl_stderr", number(p.map(|p| p.stderr)));
    if let (Some(k), Some(s)) = (kld, s) {
        add("against", text(&k.against));
        let numbers = [
            ("kld_mean", s.mean),
            ("kld_mean_stderr", s.mean_stderr),
            ("kld_median", s.median),
            ("kld_p90", s.p90),
            ("kld_p99", s.p99),
            ("kld_p999", s.p999),
            ("kld_max", s.max),
            ("same_top_p", s.same_top_p),
            ("rms_dp", s.rms_dp),
            ("ppl_ratio", s.ppl_ratio),
            ("ppl_ratio_stderr", s.ppl_ratio_stderr),
        ];
        numbers.iter().for_each(|(name, v)| add(name, number(Some(*v))));
        add("kld_mean_stderr_windows", number(k.mean_stderr_windows));
        for d in &k.domains {
            add(&format!("kld_mean.{}", d.domain), number(Some(d.summary.mean)));
            add(&format!("ppl_ratio.{}", d.domain), number(Some(d.summary.ppl_ratio)));
        }
    }
    for t in &row.eval.tasks {
        add(&format!("{}.{}", t.task, t.metric), number(Some(t.value)));
        add(&format!("{}.{}_stderr", t.task, t.metric), number(Some(t.stderr)));
    }
    out
}
