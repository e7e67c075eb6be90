//! The figures of a report.

use super::format::{change, nats, percent};
use super::{Report, ReportRow};
use crate::figure::Figure;
use crate::figure::charts::{self, Bar, Point};
use crate::landing::Group;
use crate::results::Kld;

/// The rows that were compared with a reference, with their numbers, which are those of their colours.
fn measured(report: &Report) -> impl Iterator<Item = (usize, &ReportRow, &Kld)> + Clone {
    report.rows.iter().enumerate().filter_map(|(i, r)| Some((i, r, r.eval.kld.first()?)))
}

/// Size against divergence.
pub fn pareto(report: &Report) -> Option<Figure> {
    let point = |(series, row, kld): (usize, &ReportRow, &Kld)| {
        Some(Point { label: row.name(), bytes: row.bytes?, kld: kld.summary.mean, series })
    };
    charts::pareto(&measured(report).filter_map(point).collect::<Vec<_>>())
}

/// Divergence by domain, a bar per artifact.
pub fn domains(report: &Report) -> Option<Figure> {
    let rows: Vec<_> = measured(report).filter(|(_, _, k)| !k.domains.is_empty()).take(8).collect();
    let series: Vec<(String, usize)> = rows.iter().map(|(i, r, _)| (r.name(), *i)).collect();
    let mut names: Vec<&str> = Vec::new();
    for d in rows.iter().flat_map(|(_, _, k)| &k.domains) {
        if !names.contains(&d.domain.as_str()) {
            names.push(&d.domain);
        }
    }
    let bar = |kld: &Kld, name: &str| {
        let s = &kld.domains.iter().find(|d| d.domain == name)?.summary;
        let note = format!("{} (ppl {})", nats(s.mean), change(s.ppl_ratio));
        Some(Bar { value: s.mean, stderr: s.mean_stderr, note })
    };
    let group = |name: &&str| (name.to_string(), rows.iter().map(|(_, _, k)| bar(k, name)).collect::<Vec<_>>());
    charts::bars("Divergence by kind of text", &series, &names.iter().map(group).collect::<Vec<_>>(), None)
}

/// Divergence by class of token, the worst first.
pub fn classes(groups: &[Group], series: usize, mean: f64) -> Option<Figure> {
    let mut sorted: Vec<&Group> = groups.iter().collect();
    sorted.sort_by(|a, b| b.kld.total_cmp(&a.kld));
    let bar = |g: &&Group| {
        let note = format!("{}, {} of all divergence", nats(g.kld), percent(g.share));
        (g.name.clone(), vec![Some(Bar { value: g.kld, stderr: g.stderr, note })])
    };
    let bars: Vec<_> = sorted.iter().map(bar).collect();
    charts::bars("Divergence by kind of token", &[(String::new(), series)], &bars, Some((mean, "average")))
}

/// All figures, by the names that their files have.
pub fn all(report: &Report) -> Vec<(String, Figure)> {
    let mut out: Vec<(String, Figure)> = Vec::new();
    let mut add = |name: String, figure: Option<Figure>| out.extend(figure.map(|f| (name, f)));
    add("pareto".into(), pareto(report));
    add("domains".into(), domains(report));
    for (i, row, kld) in measured(report) {
        let classes = kld.landing.as_ref().and_then(|l| classes(&l.classes, i, kld.summary.mean));
        add(format!("tokens-{}", file_name(&row.name())), classes);
    }
    if let Some(map) = &report.map {
        map.codecs.iter().for_each(|c| add(format!("heatmap-{}", file_name(c)), charts::heatmap(map, c, None)));
        add("depth".into(), charts::depth(map));
    }
    out
}

fn file_name(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect()
}
