//! The report as Markdown, for model cards and summaries of CI jobs.

use super::Report;
use super::table::markdown as escape;

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("# {}\n", escape(&report.model));
    let summary = report.summary();
    out += &format!("\n**{}**", escape(&summary.headline));
    summary.sentences.iter().for_each(|s| out += &format!(" {}", escape(s)));
    out += "\n";
    if !report.facts.is_empty() {
        out += "\n";
        for (name, value) in &report.facts {
            out += &format!("- **{}**: {}\n", escape(name), escape(value));
        }
    }
    for (i, table) in report.tables().iter().enumerate() {
        if i > 0 {
            out += &format!("\n## {}\n", escape(&table.title));
        }
        out += "\n";
        out += &table.to_markdown();
        if i == 0
            && let Some(line) = report.measured_on()
        {
            out += &format!("\n{}\n", escape(&line));
        }
    }
    if !report.notes.is_empty() {
        out += "\n## Notes\n\n";
        for note in &report.notes {
            out += &format!("- {}\n", escape(note));
        }
    }
    out
}
