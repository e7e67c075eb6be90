//! What a run or a comparison ends with: a summary, tables and figures, for the terminal, as Markdown, as one HTML page, as LaTeX.

mod charts;
pub mod format;
pub mod heat;
mod html;
mod markdown;
mod parquet;
mod summary;
mod table;
mod tables;
mod text;
mod tidy;

pub use summary::Summary;
pub use table::{Cell, Table};
pub use tidy::{Tidy, Value};

use crate::figure::Figure;
use crate::gate::GateOutcome;
use crate::map::{PlanCheck, QualityMap};
use crate::pair::Pair;
use crate::results::EvalResult;
use bitsmith_formats::Result;
use format::without_folders;
use serde::{Deserialize, Serialize};

/// One artifact.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Facts about how it was made: names and values.
    pub facts: Vec<(String, String)>,
    /// The reference, if there is one, and the artifacts.
    pub rows: Vec<ReportRow>,
    /// Gates, by target.
    pub gates: Vec<(String, GateOutcome)>,
    /// The quality map, if one was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<QualityMap>,
    /// What the reader should know: fallbacks, warnings.
    pub notes: Vec<String>,
}

/// Artifacts are compared each with each up to this number, beyond it each with the next in divergence.
const EACH_WITH_EACH: usize = 6;

impl Report {
    /// Of a quality map: the model quantized to each codec as a whole, and what each tensor alone costs.
    pub fn of_map(mut map: QualityMap) -> Report {
        let row = |c: &mut PlanCheck| {
            let kld = c.kld.take()?;
            let eval = EvalResult { model: map.model.clone(), kld: vec![kld], ..EvalResult::default() };
            Some(ReportRow {
                target: c.codec.clone(),
                method: map.method.clone(),
                bytes: Some(c.bytes),
                eval,
                ..ReportRow::default()
            })
        };
        let rows = map.plan_check.iter_mut().filter_map(row).collect();
        Report { model: map.model.clone(), rows, map: Some(map), ..Report::default() }
    }

    /// Adds a row that is named after its model, by the last part of a path.
    pub fn add(&mut self, eval: EvalResult) {
        let row = ReportRow::of(eval);
        if self.model.is_empty() {
            self.model = row.target.clone();
        }
        self.rows.push(row);
    }

    /// The report for the terminal.
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
    /// The tables as LaTeX, one after the other.
    pub fn to_latex(&self) -> String {
        self.tables().iter().map(Table::to_latex).collect::<Vec<_>>().join("\n")
    }
    /// One row per artifact and text with all numbers, as CSV.
    pub fn to_csv(&self) -> String {
        Tidy::of(self).to_csv()
    }
    /// The same as a Parquet file.
    pub fn to_parquet(&self) -> Result<Vec<u8>> {
        Tidy::of(self).to_parquet()
    }
    /// The figures, by the names that their files should have.
    pub fn figures(&self) -> Vec<(String, Figure)> {
        charts::all(self)
    }
    /// Size against divergence, if there are two artifacts.
    pub fn pareto(&self) -> Option<Figure> {
        charts::pareto(self)
    }
    /// The report in plain words.
    pub fn summary(&self) -> Summary {
        Summary::of(self)
    }

    /// Paired comparisons of the artifacts that were measured on the same windows.
    pub fn pairs(&self) -> Vec<Pair> {
        let mut rows: Vec<&ReportRow> = self.rows.iter().filter(|r| !r.eval.kld.is_empty()).collect();
        if rows.len() > EACH_WITH_EACH {
            rows.sort_by(|a, b| a.eval.kld[0].summary.mean.total_cmp(&b.eval.kld[0].summary.mean));
            return rows.windows(2).flat_map(|w| compare(w[0], w[1])).collect();
        }
        let others = |(i, a): (usize, &&ReportRow)| rows[i + 1..].iter().flat_map(|b| compare(a, b)).collect::<Vec<_>>();
        rows.iter().enumerate().flat_map(others).collect()
    }

    /// All tables, the artifacts first.
    pub fn tables(&self) -> Vec<Table> {
        let mut out = Vec::new();
        if !self.rows.is_empty() {
            out.push(tables::artifacts(self).without_empty_columns());
        }
        out.extend(tables::domains(self));
        out.extend(tables::tasks(self));
        out.extend(tables::pairs(&self.pairs()));
        out.extend(tables::gates(self));
        out
    }

    /// What the quality columns were measured on, if anything was.
    fn measured_on(&self) -> Option<String> {
        let perplexity = self.rows.iter().find_map(|r| r.eval.perplexity.first());
        let kld = self.rows.iter().find_map(|r| r.eval.kld.first());
        let (data, tokens, ctx, style) = match (perplexity, kld) {
            (Some(p), _) => (without_folders(&p.data), p.tokens, p.ctx, p.style),
            (None, Some(k)) => (without_folders(&k.data), k.summary.tokens, k.ctx, k.style),
            (None, None) => return None,
        };
        let mut line = format!("Measured on {data}: {tokens} tokens scored, windows of {ctx}, {style} style");
        if let Some(k) = kld {
            line += &format!("; KLD in nats per token against {}", without_folders(&k.against));
        }
        Some(line + ". ± is one standard error.")
    }
}

fn compare(a: &ReportRow, b: &ReportRow) -> Vec<Pair> {
    Pair::of((&a.name(), &a.eval), (&b.name(), &b.eval))
}

impl ReportRow {
    /// A row that is named after its model: the last part of a path.
    pub fn of(eval: EvalResult) -> Self {
        let target = eval.model.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_string();
        ReportRow { target, bytes: eval.bytes, bpw: eval.bpw, eval, ..ReportRow::default() }
    }

    /// What the row is called in figures and sentences.
    pub fn name(&self) -> String {
        self.target.clone()
    }
}

/// Text as part of HTML or SVG.
pub(crate) fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Position;
    use crate::results::tests::eval_windows;
    use crate::results::{Kld, Perplexity};

    fn report() -> Report {
        let eval = eval_windows(&["prose", "code"], &[0, 1]);
        let at = |kld| Position { nll_against: 1.0, nll: 1.01 + kld, kld, same_top: kld < 0.03, ..Position::default() };
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
            map: None,
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
        assert!(md.contains("| prose | prose, ppl | code | code, ppl |"));
    }

    #[test]
    fn html_is_whole_and_escaped() {
        let mut whole = report();
        whole.map = Some(heat::tests::map(3));
        let mut other = whole.rows[1].clone();
        other.target = "mlx:4bit".into();
        other.bytes = Some(2_000_000);
        whole.rows.push(other);
        let html = whole.to_html();
        assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
        assert!(html.contains("demo|&lt;model&gt;") && html.contains("one &amp; two") && !html.contains("<model>"));
        assert!(!html.contains("{{") && html.contains("id=\"heat\"") && html.contains("id=\"pareto\""));
        // Nothing is fetched.
        for fetched in ["src=", "href=\"http", "@import", "url(", "fetch("] {
            assert!(!html.contains(fetched), "{fetched}");
        }
        for tag in
            ["table", "tr", "td", "th", "thead", "tbody", "p", "ul", "li", "main", "section", "figure", "details", "div", "svg"]
        {
            let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        let mut ids: Vec<&str> = html.split(" id=\"").skip(1).filter_map(|s| s.split('"').next()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all);
    }

    #[test]
    fn the_summary_recommends_the_smallest_that_is_good_enough() {
        let eval = eval_windows(&["prose", "code"], &[0, 0, 1, 1]);
        let row = |target: &str, bytes: u64, prose: f64, code: f64| {
            let window = |loss: f64, i: usize| {
                let kld = loss * (1.0 + 0.01 * i as f64);
                vec![Position { nll_against: 1.0, nll: 1.0 + loss, kld, same_top: true, ..Position::default() }; 50]
            };
            let windows = [window(prose, 0), window(prose, 1), window(code, 2), window(code, 3)];
            let kld = vec![Kld::from_positions(&eval, "source", &windows)];
            ReportRow {
                target: target.into(),
                bytes: Some(bytes),
                eval: EvalResult { kld, ..EvalResult::default() },
                ..ReportRow::default()
            }
        };
        let rows = vec![row("q2", 10, 0.05, 0.2), row("q4", 20, 0.002, 0.006), row("q8", 40, 0.0001, 0.0002)];
        let mut report = Report { model: "m".into(), rows, ..Report::default() };
        let summary = report.summary();
        assert_eq!(summary.recommended.as_deref(), Some("q4"));
        assert_eq!(summary.headline, "Use q4: 0.4 % perplexity, code 0.6 %.");
        assert!(summary.sentences[0].starts_with("Of 3 artifacts it is the smallest"), "{:?}", summary.sentences);
        // A gate that it does not meet leaves the next.
        let failed = GateOutcome { gate: "kld.mean<0.001".into(), value: Some(0.004), held: false };
        report.gates.push(("q4".into(), failed));
        assert_eq!(report.summary().recommended.as_deref(), Some("q8"));
        // Where none is good enough, that is said.
        report.rows.retain(|r| r.target == "q2");
        let summary = report.summary();
        assert!(summary.headline.starts_with("Use q2") && summary.sentences[0].contains("cannot be shown"), "{summary:?}");
        assert_eq!(Report::default().summary().headline, "Nothing was compared with a reference.");
    }

    #[test]
    fn csv_has_one_row_per_artifact_and_text() {
        let csv = report().to_csv();
        let lines: Vec<Vec<&str>> = csv.lines().map(|l| l.split(',').collect()).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|l| l.len() == lines[0].len()));
        let column = |name: &str| lines[0].iter().position(|c| *c == name).unwrap();
        assert_eq!((lines[1][column("kld_mean")], lines[2][column("bytes")]), ("", "1900000"));
        assert!((lines[2][column("kld_mean")].parse::<f64>().unwrap() - 0.0275).abs() < 1e-9);
        assert!(lines[2][column("kld_mean.code")].parse::<f64>().is_ok());
    }

    #[test]
    fn a_report_is_read_back() {
        let json = serde_json::to_value(report()).unwrap();
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report());
    }

    #[test]
    fn an_empty_report_renders() {
        let r = Report { model: "m".into(), ..Report::default() };
        assert!(r.to_text().contains('m') && r.to_markdown().starts_with("# ") && r.to_html().contains("</html>"));
    }
}
