//! The tables of a report.

use super::format::{bytes, change, duration, nats, number, percent, with_error, without_folders};
use super::table::{Cell, Table};
use super::{Report, ReportRow};
use crate::landing::Group;
use crate::pair::Pair;

/// The artifacts, one a row: size, quality, cost.
pub fn artifacts(report: &Report) -> Table {
    let heads = [
        ("target", false),
        ("method", false),
        ("size", true),
        ("bpw", true),
        ("perplexity", true),
        ("ppl change", true),
        ("mean KLD", true),
        ("99.9 % KLD", true),
        ("same top", true),
        ("time", true),
        ("peak memory", true),
    ];
    let mut table = Table::new("artifacts", "Artifacts", &heads);
    table.rows = report.rows.iter().map(artifact).collect();
    table
}

fn artifact(row: &ReportRow) -> Vec<Cell> {
    let perplexity = row.eval.perplexity.first();
    let kld = row.eval.kld.first().map(|k| &k.summary);
    vec![
        row.target.as_str().into(),
        row.method.as_str().into(),
        Cell::maybe(row.bytes, bytes, |b| b as f64),
        Cell::maybe(row.bpw, |b| format!("{b:.3}"), |b| b),
        Cell::maybe(perplexity, |p| with_error(p.ppl, p.stderr), |p| p.ppl),
        Cell::maybe(kld, |k| format!("{} ± {}", change(k.ppl_ratio), percent(k.ppl_ratio_stderr)), |k| k.ppl_ratio),
        Cell::maybe(kld, |k| with_error(k.mean, k.mean_stderr), |k| k.mean),
        Cell::maybe(kld, |k| nats(k.p999), |k| k.p999),
        Cell::maybe(kld, |k| format!("{:.2} %", k.same_top_p * 100.0), |k| k.same_top_p),
        Cell::maybe(row.seconds, duration, |s| s),
        Cell::maybe(row.peak_rss_bytes, bytes, |b| b as f64),
    ]
}

/// Names in the order of their first occurrence.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut out: Vec<&str> = Vec::new();
    names.for_each(|n| {
        if !out.contains(&n) {
            out.push(n);
        }
    });
    out
}

/// Divergence and change of perplexity by domain, one artifact a row.
pub fn domains(report: &Report) -> Option<Table> {
    let rows: Vec<_> =
        report.rows.iter().filter_map(|r| Some((r, r.eval.kld.first().filter(|k| !k.domains.is_empty())?))).collect();
    let names = distinct(rows.iter().flat_map(|(_, k)| k.domains.iter().map(|d| d.domain.as_str())));
    if names.is_empty() {
        return None;
    }
    let mut table = Table::new("domains", "Mean KLD and change of perplexity by domain", &[("target", false), ("method", false)]);
    for name in &names {
        table.heads.push((name.to_string(), true));
        table.heads.push((format!("{name}, ppl"), true));
    }
    for (row, kld) in rows {
        let mut cells: Vec<Cell> = vec![row.target.as_str().into(), row.method.as_str().into()];
        for name in &names {
            let domain = kld.domains.iter().find(|d| d.domain == *name).map(|d| &d.summary);
            cells.push(Cell::maybe(domain, |s| with_error(s.mean, s.mean_stderr), |s| s.mean));
            cells.push(Cell::maybe(domain, |s| change(s.ppl_ratio), |s| s.ppl_ratio));
        }
        table.rows.push(cells);
    }
    Some(table.without_empty_columns())
}

/// Task scores, one artifact and task a row.
pub fn tasks(report: &Report) -> Option<Table> {
    let heads = [
        ("task", false),
        ("target", false),
        ("metric", false),
        ("items", true),
        ("score", true),
        ("change", true),
        ("flips", true),
        ("p", true),
        ("verdict", false),
    ];
    let mut table = Table::new("tasks", "Tasks", &heads);
    for row in &report.rows {
        for t in &row.eval.tasks {
            let paired = t.paired.as_ref();
            let verdict = match paired {
                None => "",
                Some(p) if p.p_value >= crate::paired::SIGNIFICANCE => "not distinguishable",
                Some(p) if p.delta < 0.0 => "worse",
                Some(_) => "better",
            };
            table.rows.push(vec![
                t.task.as_str().into(),
                row.target.as_str().into(),
                t.metric.as_str().into(),
                Cell::number(t.n.to_string(), t.n as f64),
                Cell::number(with_error(t.value, t.stderr), t.value),
                Cell::maybe(paired, |p| format!("{:+.4}", p.delta).replace('-', "−"), |p| p.delta),
                Cell::maybe(paired, |p| p.flips.to_string(), |p| p.flips as f64),
                Cell::maybe(paired, |p| format!("{:.3}", p.p_value), |p| p.p_value),
                verdict.into(),
            ]);
        }
    }
    (!table.rows.is_empty()).then(|| table.without_empty_columns())
}

/// Paired comparisons of the artifacts.
pub fn pairs(pairs: &[Pair]) -> Option<Table> {
    let heads = [
        ("text", false),
        ("first", false),
        ("second", false),
        ("KLD difference", true),
        ("windows", true),
        ("p", true),
        ("verdict", false),
    ];
    let mut table = Table::new("pairs", "Paired comparisons, window by window", &heads);
    table.rows = pairs
        .iter()
        .map(|p| {
            vec![
                without_folders(&p.data).into(),
                p.a.as_str().into(),
                p.b.as_str().into(),
                Cell::number(with_error(p.difference, p.stderr).replace('-', "−"), p.difference),
                Cell::number(p.windows.to_string(), p.windows as f64),
                Cell::number(if p.p_value < 0.001 { "< 0.001".into() } else { format!("{:.3}", p.p_value) }, p.p_value),
                p.verdict().into(),
            ]
        })
        .collect();
    (!table.rows.is_empty()).then_some(table)
}

/// The gates.
pub fn gates(report: &Report) -> Option<Table> {
    let mut table = Table::new("gates", "Gates", &[("target", false), ("gate", false), ("value", true), ("result", false)]);
    table.rows = report
        .gates
        .iter()
        .map(|(target, g)| {
            let result = Cell { good: Some(g.held), ..Cell::from(if g.held { "held" } else { "FAILED" }) };
            vec![
                target.as_str().into(),
                g.gate.as_str().into(),
                Cell { text: number(g.value), value: g.value, good: None },
                result,
            ]
        })
        .collect();
    (!table.rows.is_empty()).then_some(table)
}

/// Groups of tokens, one a row.
pub fn groups(id: &str, title: &str, head: &str, groups: &[Group]) -> Table {
    let heads =
        [(head, false), ("tokens", true), ("mean KLD", true), ("share of all", true), ("ppl change", true), ("same top", true)];
    let mut table = Table::new(id, title, &heads);
    table.rows = groups
        .iter()
        .map(|g| {
            vec![
                g.name.as_str().into(),
                Cell::number(g.tokens.to_string(), g.tokens as f64),
                Cell::number(with_error(g.kld, g.stderr), g.kld),
                Cell::number(percent(g.share), g.share),
                Cell::number(change(g.ppl_ratio), g.ppl_ratio),
                Cell::number(percent(g.same_top_p), g.same_top_p),
            ]
        })
        .collect();
    table
}
