//! The table that a run ends with: for the terminal, as Markdown and as an HTML page.

mod html;
mod markdown;
mod text;

use crate::gate::GateOutcome;
use crate::results::{DomainKld, EvalResult};
use serde::Serialize;

/// One artifact.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ReportRow {
    /// `container:encoding`; for the reference, how it is stored.
    pub target: String,
    /// Transforms and solver; empty for the reference.
    pub method: String,
    /// Size of the artifact.
    pub bytes: Option<u64>,
    /// Bits per weight.
    pub bpw: Option<f64>,
    /// Seconds that making it took.
    pub seconds: Option<f64>,
    /// Peak resident memory.
    pub peak_rss_bytes: Option<u64>,
    /// Its quality; the first perplexity and the first KL divergence are shown.
    pub eval: EvalResult,
}

/// A report on one model and its artifacts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Facts above the table: names and values.
    pub facts: Vec<(String, String)>,
    /// The reference, if there is one, and the artifacts.
    pub rows: Vec<ReportRow>,
    /// Gates, by target.
    pub gates: Vec<(String, GateOutcome)>,
    /// What the reader should know: fallbacks, warnings.
    pub notes: Vec<String>,
}

/// Column heads of the main table and whether numbers stand in them.
const COLUMNS: [(&str, bool); 10] = [
    ("target", false),
    ("method", false),
    ("size", true),
    ("bpw", true),
    ("perplexity", true),
    ("ratio", true),
    ("mean KLD", true),
    ("same top", true),
    ("time", true),
    ("peak memory", true),
];

impl Report {
    /// The report as a table for the terminal.
    pub fn to_text(&self) -> String {
        text::render(self)
    }
    /// The report as Markdown.
    pub fn to_markdown(&self) -> String {
        markdown::render(self)
    }
    /// The report as an HTML page that needs no other file.
    pub fn to_html(&self) -> String {
        html::render(self)
    }

    /// Divergence by domain of the rows that have it: target, method, domains.
    fn by_domain(&self) -> Vec<(&str, &str, &[DomainKld])> {
        let domains = |r: &'_ ReportRow| r.eval.kld.first().is_some_and(|k| !k.domains.is_empty());
        let rows = self.rows.iter().filter(|r| domains(r));
        rows.map(|r| (r.target.as_str(), r.method.as_str(), r.eval.kld[0].domains.as_slice())).collect()
    }

    /// Heads and cells of the table of divergence by domain, if any row has it.
    fn domain_table(&self) -> Option<(Vec<String>, Vec<Vec<String>>)> {
        let rows = self.by_domain();
        let mut names: Vec<&str> = Vec::new();
        for d in rows.iter().flat_map(|(_, _, domains)| *domains) {
            if !names.contains(&d.domain.as_str()) {
                names.push(&d.domain);
            }
        }
        if names.is_empty() {
            return None;
        }
        let heads = ["target", "method"].into_iter().chain(names.iter().copied()).map(String::from).collect();
        let cells = rows.iter().map(|(target, method, domains)| {
            let value = |name: &&str| match domains.iter().find(|d| d.domain == *name) {
                Some(d) => with_error(d.summary.mean, d.summary.mean_stderr),
                None => ABSENT.to_string(),
            };
            [(*target).to_string(), (*method).to_string()].into_iter().chain(names.iter().map(value)).collect()
        });
        Some((heads, cells.collect()))
    }

    /// What the quality columns were measured on, if anything was.
    fn measured_on(&self) -> Option<String> {
        let perplexity = self.rows.iter().find_map(|r| r.eval.perplexity.first());
        let kld = self.rows.iter().find_map(|r| r.eval.kld.first());
        let (data, tokens, ctx, style) = match (perplexity, kld) {
            (Some(p), _) => (&p.data, p.tokens, p.ctx, p.style),
            (None, Some(k)) => (&k.data, k.summary.tokens, k.ctx, k.style),
            (None, None) => return None,
        };
        let mut line = format!("Measured on {data}: {tokens} tokens scored, windows of {ctx}, {style} style");
        if let Some(k) = kld {
            line += &format!("; KLD in nats per token against {}", k.against);
        }
        Some(line + ". ± is one standard error.")
    }
}

impl ReportRow {
    /// The cells of the main table.
    fn cells(&self) -> [String; COLUMNS.len()] {
        let perplexity = self.eval.perplexity.first();
        let kld = self.eval.kld.first().map(|k| &k.summary);
        let or_absent = |s: Option<String>| s.unwrap_or_else(|| ABSENT.to_string());
        [
            self.target.clone(),
            self.method.clone(),
            or_absent(self.bytes.map(bytes)),
            or_absent(self.bpw.map(|b| format!("{b:.3}"))),
            or_absent(perplexity.map(|p| with_error(p.ppl, p.stderr))),
            or_absent(kld.map(|k| with_error(k.ppl_ratio, k.ppl_ratio_stderr))),
            or_absent(kld.map(|k| with_error(k.mean, k.mean_stderr))),
            or_absent(kld.map(|k| format!("{:.2} %", k.same_top_p * 100.0))),
            or_absent(self.seconds.map(duration)),
            or_absent(self.peak_rss_bytes.map(bytes)),
        ]
    }
}

/// In cells without a value.
const ABSENT: &str = "–";

/// A value and its standard error to two significant digits of the error; small values in powers of ten.
fn with_error(value: f64, error: f64) -> String {
    if !value.is_finite() || !error.is_finite() {
        return format!("{value} ± {error}");
    }
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.2e} ± {error:.0e}");
    }
    let digits = match error > 0.0 {
        true => (1 - error.log10().floor() as i64).clamp(0, 9) as usize,
        // Without an error, four digits after the point of a number near 1.
        false => 4,
    };
    format!("{value:.digits$} ± {error:.digits$}")
}

/// Bytes in the unit that suits them.
fn bytes(n: u64) -> String {
    const UNITS: [(&str, u32); 3] = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| n >= 1 << shift) {
        Some((unit, shift)) => format!("{:.2} {unit}", n as f64 / (1u64 << shift) as f64),
        None => format!("{n} B"),
    }
}

/// Seconds in the unit that suits them.
fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole / 60 % 60),
    }
}

/// A number of a gate: short, and exact enough to be judged by.
fn number(value: Option<f64>) -> String {
    match value {
        None => "not measured".into(),
        Some(v) if v.fract() == 0.0 && v.abs() < 1e15 => format!("{v}"),
        Some(v) => {
            let digits = (5 - v.abs().log10().floor().clamp(-12.0, 5.0) as i64) as usize;
            format!("{v:.digits$}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Position;
    use crate::results::tests::eval_windows;
    use crate::results::{Kld, Perplexity};

    fn report() -> Report {
        let eval = eval_windows(&["prose", "code"], &[0, 1]);
        let at = |kld| Position { nll_against: 1.0, nll: 1.01 + kld, kld, same_top: kld < 0.03 };
        let windows = [vec![at(0.01), at(0.02)], vec![at(0.03), at(0.05)]];
        let result = EvalResult {
            model: "m".into(),
            perplexity: vec![Perplexity::from_nlls(&eval, &[vec![1.0, 1.1], vec![1.3, 1.2]])],
            kld: vec![Kld::from_positions(&eval, "demo <f32>", &windows)],
            ..EvalResult::default()
        };
        let base = ReportRow {
            target: "safetensors:bf16".into(),
            bytes: Some(5_773_880),
            eval: EvalResult { kld: vec![], ..result.clone() },
            ..ReportRow::default()
        };
        let row = ReportRow {
            target: "gguf:q4_k_m".into(),
            method: "gptq".into(),
            bytes: Some(1_900_000),
            bpw: Some(4.83),
            seconds: Some(75.4),
            peak_rss_bytes: Some(300 << 20),
            eval: result,
        };
        let gate = |gate: &str, value, held| ("gguf:q4_k_m".to_string(), GateOutcome { gate: gate.into(), value, held });
        Report {
            model: "demo|<model>".into(),
            facts: vec![("calibration".into(), "builtin".into())],
            rows: vec![base, row],
            gates: vec![
                gate("kld.mean<0.01", Some(0.0275), false),
                gate("bytes<2MB", Some(1_900_000.0), true),
                gate("seconds<1", None, false),
            ],
            notes: vec!["one & two".into()],
        }
    }

    #[test]
    fn text_columns_line_up() {
        let text = report().to_text();
        let lines: Vec<&str> = text.lines().filter(|l| l.contains("gguf:q4_k_m") || l.starts_with("target")).collect();
        let end = |line: &str, word: &str| line[..line.find(word).unwrap() + word.len()].chars().count();
        assert_eq!(end(lines[0], "size"), end(lines[1], "1.81 MiB"));
        assert_eq!(end(lines[0], "time"), end(lines[1], "1 min 15 s"));
        assert!(text.contains("kld.mean<0.01") && text.contains("not measured"));
        assert!(text.lines().all(|l| l.trim_end() == l));
    }

    #[test]
    fn markdown_is_a_table() {
        let md = report().to_markdown();
        let table: Vec<&str> = md.lines().filter(|l| l.starts_with('|')).collect();
        assert!(table[1].starts_with("|---|---|---:|"));
        assert!(table[3].contains("| gguf:q4_k_m | gptq | 1.81 MiB | 4.830 |"));
        // A bar in a name must not make a column.
        assert!(md.contains("demo\\|"));
        assert!(md.contains("| prose | code |"));
    }

    #[test]
    fn html_is_whole_and_escaped() {
        let html = report().to_html();
        assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
        assert!(html.contains("demo|&lt;model&gt;") && html.contains("one &amp; two") && !html.contains("<model>"));
        assert!(!html.contains("<script") && !html.contains("http"));
        for tag in ["table", "tr", "td", "th", "thead", "tbody", "p", "ul", "li", "main", "section"] {
            let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn an_empty_report_renders() {
        let r = Report { model: "m".into(), ..Report::default() };
        assert!(r.to_text().contains('m') && r.to_markdown().starts_with("# ") && r.to_html().contains("</html>"));
    }

    #[test]
    fn figures() {
        assert_eq!(with_error(5.12345, 0.0321), "5.123 ± 0.032");
        assert_eq!(with_error(273.4456, 2.34), "273.4 ± 2.3");
        assert_eq!(with_error(0.0095, 0.00021), "0.00950 ± 0.00021");
        assert_eq!(with_error(1.0, 0.0), "1.0000 ± 0.0000");
        assert_eq!(with_error(3.973e-5, 7.6e-7), "3.97e-5 ± 8e-7");
        assert_eq!(with_error(0.0, 0.0), "0.0000 ± 0.0000");
        assert_eq!(with_error(12345.0, 321.0), "12345 ± 321");
        assert_eq!(bytes(4 << 30), "4.00 GiB");
        assert_eq!(bytes(17), "17 B");
        assert_eq!(duration(3.21), "3.2 s");
        assert_eq!(duration(59.96), "1 min 00 s");
        assert_eq!(duration(7320.0), "2 h 02 min");
        assert_eq!(number(Some(0.02751234)), "0.0275123");
        assert_eq!(number(Some(1.0042)), "1.00420");
        assert_eq!(number(Some(4294967296.0)), "4294967296");
    }
}
