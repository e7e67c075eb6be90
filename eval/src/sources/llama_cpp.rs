//! What llama-perplexity prints, with or without `--kl-divergence`.

use crate::report::{Report, ReportRow};
use crate::results::{EvalResult, Kld, KldSummary, Perplexity};
use bitsmith_datasets::Style;
use bitsmith_formats::Result;

/// The text's name is not in the log.
const DATA: &str = "as llama-perplexity was given it";

pub(super) fn read(text: &str, name: &str) -> Option<Result<Report>> {
    let log = Log(text);
    let ctx = log.after("n_ctx=").unwrap_or(512.0) as usize;
    let windows =
        log.lines().find_map(|l| first_number(l.split_once("over ")?.1).filter(|_| l.contains("chunks"))).unwrap_or(0.0);
    let tokens = (windows as usize).saturating_mul(Style::LlamaCpp.scored(ctx).len());
    let mut eval = EvalResult { model: log.file().unwrap_or(name).to_string(), ..EvalResult::default() };
    let perplexity = |ppl: f64, stderr: f64| Perplexity {
        data: DATA.into(),
        ctx,
        style: Style::LlamaCpp,
        tokens,
        nll: ppl.ln(),
        ppl,
        stderr,
        windows: windows as usize,
        sha256: String::new(),
        domains: Vec::new(),
    };
    if let Some(summary) = log.summary(tokens) {
        let (ppl, stderr) = log.value("Mean PPL(Q)")?;
        eval.perplexity.push(perplexity(ppl, stderr));
        eval.kld.push(Kld {
            data: DATA.into(),
            against: "the base of llama-perplexity".into(),
            ctx,
            style: Style::LlamaCpp,
            summary,
            mean_stderr_windows: None,
            ppl_ratio_stderr_windows: None,
            sha256: String::new(),
            domains: Vec::new(),
            windows: Vec::new(),
            landing: None,
        });
    } else {
        let line = log.lines().find_map(|l| l.split_once("Final estimate: PPL = ")).map(|l| l.1)?;
        let (ppl, stderr) = line.split_once("+/-")?;
        eval.perplexity.push(perplexity(ppl.trim().parse().ok()?, first_number(stderr)?));
    }
    let size = log.lines().find_map(|l| l.split_once("file size").or(l.split_once("model size")).map(|l| l.1));
    let row = ReportRow {
        target: eval.model.clone(),
        bytes: size.and_then(bytes),
        bpw: size.and_then(|s| s.split_once('(')).and_then(|(_, bpw)| first_number(bpw)),
        eval,
        ..ReportRow::default()
    };
    Some(Ok(Report { model: row.target.clone(), rows: vec![row], ..Report::default() }))
}

struct Log<'a>(&'a str);

impl<'a> Log<'a> {
    fn lines(&self) -> impl Iterator<Item = &'a str> {
        self.0.lines()
    }

    /// The number after a mark.
    fn after(&self, mark: &str) -> Option<f64> {
        self.lines().find_map(|l| first_number(l.split_once(mark)?.1))
    }

    /// `NAME : value ± error`, or without an error.
    fn value(&self, name: &str) -> Option<(f64, f64)> {
        let line =
            self.lines().find(|l| l.split(':').next().is_some_and(|head| head.split_whitespace().eq(name.split_whitespace())))?;
        let (_, rest) = line.split_once(':')?;
        let (value, error) = rest.split_once('±').unwrap_or((rest, ""));
        Some((first_number(value)?, first_number(error).unwrap_or(0.0)))
    }

    fn summary(&self, tokens: usize) -> Option<KldSummary> {
        let (mean, mean_stderr) = self.value("Mean KLD")?;
        let (ppl_ratio, ppl_ratio_stderr) = self.value("Mean PPL(Q)/PPL(base)")?;
        let nats = |name: &str| self.value(name).map(|v| v.0);
        Some(KldSummary {
            tokens,
            mean,
            mean_stderr,
            median: nats("Median KLD")?,
            p90: nats("90.0% KLD")?,
            p99: nats("99.0% KLD")?,
            p999: nats("99.9% KLD")?,
            max: nats("Maximum KLD")?,
            same_top_p: nats("Same top p")? / 100.0,
            rms_dp: nats("RMS Δp")? / 100.0,
            ppl: nats("Mean PPL(Q)")?,
            ppl_against: nats("Mean PPL(base)")?,
            ppl_ratio,
            ppl_ratio_stderr,
        })
    }

    /// The model's file, without its folder.
    fn file(&self) -> Option<&'a str> {
        let line = self.lines().find(|l| l.contains("loaded meta data"))?;
        let path = line.split_once(" from ")?.1.split(" (version").next()?;
        path.rsplit(['/', '\\']).next()
    }
}

/// The number that a text begins with, after spaces and signs that are no part of it.
fn first_number(text: &str) -> Option<f64> {
    let text = text.trim_start_matches([' ', '=', ':', '(']);
    let end = text.find(|c: char| !(c.is_ascii_digit() || ".-+e".contains(c))).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// `= 3.59 GiB (4.95 BPW)`.
fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let shift = units.iter().find(|(unit, _)| text.contains(unit))?.1;
    Some((first_number(text)? * (1u64 << shift) as f64).round() as u64)
}
