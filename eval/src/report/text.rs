//! The report for the terminal.

use super::{COLUMNS, Report, number};

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("{}\n", report.model);
    let width = report.facts.iter().map(|(name, _)| chars(name)).max().unwrap_or(0);
    for (name, value) in &report.facts {
        out += &format!("  {}  {value}\n", pad(name, width, false));
    }
    if !report.rows.is_empty() {
        let heads = COLUMNS.map(|(head, _)| head.to_string()).to_vec();
        let cells: Vec<Vec<String>> = report.rows.iter().map(|r| r.cells().to_vec()).collect();
        out += "\n";
        out += &table(&heads, &cells, |c| COLUMNS[c].1);
    }
    if let Some(line) = report.measured_on() {
        out += &format!("\n{line}\n");
    }
    if let Some((heads, cells)) = report.domain_table() {
        out += "\nMean KLD by domain\n";
        out += &table(&heads, &cells, |c| c >= 2);
    }
    if !report.gates.is_empty() {
        out += "\nGates\n";
        let row = |(target, g): &(String, crate::GateOutcome)| {
            vec![if g.held { "held" } else { "FAILED" }.to_string(), target.clone(), g.gate.clone(), number(g.value)]
        };
        let heads = ["", "target", "gate", "value"].map(String::from);
        out += &table(&heads, &report.gates.iter().map(row).collect::<Vec<_>>(), |c| c == 3);
    }
    if !report.notes.is_empty() {
        out += "\nNotes\n";
        for note in &report.notes {
            out += &format!("  {note}\n");
        }
    }
    out
}

fn chars(s: &str) -> usize {
    s.chars().count()
}

fn pad(s: &str, width: usize, right: bool) -> String {
    let space = " ".repeat(width.saturating_sub(chars(s)));
    if right { space + s } else { s.to_string() + &space }
}

/// Columns two spaces apart, those for which `right` holds aligned to the right.
fn table(heads: &[String], rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let width = |c: usize| rows.iter().map(|r| chars(&r[c])).chain([chars(&heads[c])]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells.iter().enumerate().map(|(c, s)| pad(s, widths[c], right(c))).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(heads);
    for row in rows {
        out += &line(row);
    }
    out
}
