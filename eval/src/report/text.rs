//! The report for the terminal.

use super::{Report, heat};

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("{}\n", report.model);
    let chars = |s: &str| s.chars().count();
    let width = report.facts.iter().map(|(name, _)| chars(name)).max().unwrap_or(0);
    for (name, value) in &report.facts {
        out += &format!("  {name}{}  {value}\n", " ".repeat(width - chars(name)));
    }
    for (i, table) in report.tables().iter().enumerate() {
        out += "\n";
        if i > 0 {
            out += &format!("{}\n", table.title);
        }
        out += &table.to_text();
        if i == 0
            && let Some(line) = report.measured_on()
        {
            out += &format!("\n{line}\n");
        }
    }
    if let Some(map) = report.map.as_ref().map(heat::to_text).filter(|m| !m.is_empty()) {
        out += &format!("\n{map}");
    }
    if !report.notes.is_empty() {
        out += "\nNotes\n";
        for note in &report.notes {
            out += &format!("  {note}\n");
        }
    }
    let summary = report.summary();
    out += &format!("\n{}\n", summary.headline);
    summary.sentences.iter().for_each(|s| out += &format!("  {s}\n"));
    out
}
