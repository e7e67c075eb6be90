//! The report in plain words, with a recommendation.

use super::format::{bytes, nats, percent, without_folders};
use super::heat::Grid;
use super::{Report, ReportRow};
use crate::results::{Kld, KldSummary};
use serde::Serialize;

/// Perplexity may rise by this much before an artifact counts as damaged.
const ACCEPTABLE: f64 = 0.01;
/// On the worst domain it may rise by this much.
const ACCEPTABLE_DOMAIN: f64 = 0.03;
/// Half the width of a 95 % interval in standard errors.
const TWO_SIDED_95: f64 = 1.96;

/// What the reader should take away.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The artifact to use, if any was measured against its source.
    pub recommended: Option<String>,
    /// One line.
    pub headline: String,
    /// What else is worth knowing, in whole sentences.
    pub sentences: Vec<String>,
}

impl Summary {
    /// Of a report. Recommended is the smallest artifact whose perplexity rises by less than 1 % (and by less than 3 % on every domain)
    /// with 95 % certainty, and which met all gates; if there is none, the closest to the source.
    pub fn of(report: &Report) -> Summary {
        let measured: Vec<(&ReportRow, &Kld)> = report.rows.iter().filter_map(|r| Some((r, r.eval.kld.first()?))).collect();
        let passed = |r: &ReportRow| report.gates.iter().all(|(target, g)| *target != r.target || g.held);
        let eligible: Vec<_> = measured.iter().copied().filter(|(r, _)| passed(r)).collect();
        let good = eligible.iter().copied().filter(|(_, k)| is_acceptable(k));
        let smallest = good.min_by(|a, b| size(a.0).cmp(&size(b.0)).then(a.1.summary.mean.total_cmp(&b.1.summary.mean)));
        let closest = eligible.iter().copied().min_by(|a, b| a.1.summary.mean.total_cmp(&b.1.summary.mean));
        let Some((row, kld)) = smallest.or(closest) else {
            if let Some(summary) = of_map(report).filter(|_| measured.is_empty()) {
                return summary;
            }
            let headline = match measured.is_empty() {
                true => "Nothing was compared with a reference.".to_string(),
                false => "No artifact met its gates.".to_string(),
            };
            return Summary { headline, ..Summary::default() };
        };
        let worst = worst_domain(kld);
        let domain = worst.map_or(String::new(), |(name, s)| format!(", {name} {}", loss(s)));
        let headline = format!("Use {}: {} perplexity{domain}.", row.name(), loss(&kld.summary));
        let mut sentences = vec![reason(smallest.is_some(), measured.len(), passed_all(report, measured.len(), eligible.len()))];
        sentences.extend(size_sentence(report, row, kld));
        sentences.extend(certainty(kld));
        sentences.extend(others(report, row));
        sentences.extend(where_it_lands(kld));
        Summary { recommended: Some(row.name()), headline, sentences }
    }
}

/// Of a map alone: where each codec loses most, and what all of it together costs.
fn of_map(report: &Report) -> Option<Summary> {
    let map = report.map.as_ref()?;
    let worst = map.codecs.iter().find_map(|c| Some((c, Grid::of(map, c, None)?.describe())))?;
    let whole = map.plan_check.iter().map(|c| {
        let (size, cost) = (bytes(c.bytes), nats(c.measured));
        format!("With all matrices in {}, {size}, the model diverges by {cost} nats per token.", c.codec)
    });
    Some(Summary { recommended: None, headline: format!("{}: {}", worst.0, lower(&worst.1)), sentences: whole.collect() })
}

fn lower(sentence: &str) -> String {
    let mut chars = sentence.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

fn size(row: &ReportRow) -> u64 {
    row.bytes.unwrap_or(u64::MAX)
}

fn is_acceptable(kld: &Kld) -> bool {
    let stderr = kld.ppl_ratio_stderr_windows.unwrap_or(kld.summary.ppl_ratio_stderr);
    let surely = kld.summary.ppl_ratio + TWO_SIDED_95 * stderr < 1.0 + ACCEPTABLE;
    surely && kld.domains.iter().all(|d| d.summary.ppl_ratio < 1.0 + ACCEPTABLE_DOMAIN)
}

/// The rise of perplexity: `0.8 %`; a fall is none.
fn loss(s: &KldSummary) -> String {
    percent((s.ppl_ratio - 1.0).max(0.0))
}

fn worst_domain(kld: &Kld) -> Option<(&str, &KldSummary)> {
    let domains = kld.domains.iter().map(|d| (d.domain.as_str(), &d.summary));
    domains.max_by(|a, b| a.1.ppl_ratio.total_cmp(&b.1.ppl_ratio))
}

fn passed_all(report: &Report, measured: usize, eligible: usize) -> &'static str {
    match (report.gates.is_empty(), measured == eligible) {
        (true, _) => "",
        (false, true) => " All gates held.",
        (false, false) => " Artifacts that failed a gate were left out.",
    }
}

fn reason(found: bool, measured: usize, gates: &str) -> String {
    let limits = format!("{} perplexity and {} on any domain", percent(ACCEPTABLE), percent(ACCEPTABLE_DOMAIN));
    let text = match (found, measured) {
        (true, 1) => format!("It loses less than {limits}."),
        (true, n) => format!("Of {n} artifacts it is the smallest that loses less than {limits}."),
        (false, 1) => format!("It cannot be shown to lose less than {limits}."),
        (false, n) => {
            format!("None of {n} artifacts can be shown to lose less than {limits}; this one is closest to the source.")
        }
    };
    text + gates
}

fn size_sentence(report: &Report, row: &ReportRow, kld: &Kld) -> Option<String> {
    let own = row.bytes?;
    let source = report.rows.iter().find(|r| r.eval.kld.is_empty()).and_then(|r| r.bytes);
    let part = source.map_or(String::new(), |s| format!(", {} of the source", percent(own as f64 / s as f64)));
    let same = percent(kld.summary.same_top_p);
    Some(format!(
        "It takes {}{part}, and finds the same next token most likely as {} at {same} of all places.",
        bytes(own),
        without_folders(&kld.against)
    ))
}

/// Whether the rise of perplexity is more than chance.
fn certainty(kld: &Kld) -> Option<String> {
    let stderr = kld.ppl_ratio_stderr_windows?;
    let rise = kld.summary.ppl_ratio - 1.0;
    (rise.abs() < TWO_SIDED_95 * stderr).then(|| {
        let (rise, stderr) = (percent(rise).replace('-', "−"), percent(stderr));
        format!("Its change of perplexity, {rise} ± {stderr}, is not distinguishable from none.")
    })
}

/// The artifacts that cannot be told from the recommended one.
fn others(report: &Report, row: &ReportRow) -> Option<String> {
    let name = row.name();
    let pairs = report.pairs();
    let alike: Vec<String> = pairs
        .iter()
        .filter(|p| !p.is_distinguishable() && (p.a == name || p.b == name))
        .map(|p| if p.a == name { p.b.clone() } else { p.a.clone() })
        .collect();
    let verb = if alike.len() == 1 { "is" } else { "are" };
    (!alike.is_empty()).then(|| format!("{} {verb} not distinguishable from it in divergence.", alike.join(", ")))
}

fn where_it_lands(kld: &Kld) -> Option<String> {
    let landing = kld.landing.as_ref()?;
    // A group of a few tokens says little.
    let enough = |tokens: usize| tokens * 200 >= kld.summary.tokens;
    let class = landing.classes.iter().filter(|g| enough(g.tokens)).max_by(|a, b| a.kld.total_cmp(&b.kld))?;
    let times = class.kld / kld.summary.mean;
    let mut text = format!("Predictions of {} suffer most, {times:.1} times the average", plural(&class.name));
    if let Some(domain) = landing.domains.iter().max_by(|a, b| a.share.total_cmp(&b.share)) {
        text += &format!("; {} of all divergence lies in {}", percent(domain.share), domain.domain);
    }
    (times.is_finite() && times > 1.0).then(|| text + ".")
}

fn plural(class: &str) -> String {
    match class {
        "first token of a word" => "the first token of words".into(),
        "rest of a word" => "the rest of words".into(),
        "capitalised word" | "rare token" => format!("{class}s"),
        "part of a character" => "parts of characters".into(),
        other => other.into(),
    }
}
