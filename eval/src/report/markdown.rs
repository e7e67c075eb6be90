//! The report as Markdown.

use super::{COLUMNS, Report, number};

pub(super) fn render(report: &Report) -> String {
    let mut out = format!("# {}\n", escape(&report.model));
    if !report.facts.is_empty() {
        out += "\n";
        for (name, value) in &report.facts {
            out += &format!("- **{}**: {}\n", escape(name), escape(value));
        }
    }
    if !report.rows.is_empty() {
        let heads = COLUMNS.map(|(head, _)| head.to_string());
        let cells: Vec<Vec<String>> = report.rows.iter().map(|r| r.cells().to_vec()).collect();
        out += "\n";
        out += &table(&heads, &cells, |c| COLUMNS[c].1);
    }
    if let Some(line) = report.measured_on() {
        out += &format!("\n{}\n", escape(&line));
    }
    if let Some((heads, cells)) = report.domain_table() {
        out += "\n## Mean KLD by domain\n\n";
        out += &table(&heads, &cells, |c| c >= 2);
    }
    if !report.gates.is_empty() {
        out += "\n## Gates\n\n";
        let row = |(target, g): &(String, crate::GateOutcome)| {
            vec![target.clone(), g.gate.clone(), number(g.value), if g.held { "held" } else { "**failed**" }.to_string()]
        };
        let heads = ["target", "gate", "value", "result"].map(String::from);
        out += &table(&heads, &report.gates.iter().map(row).collect::<Vec<_>>(), |c| c == 2);
    }
    if !report.notes.is_empty() {
        out += "\n## Notes\n\n";
        for note in &report.notes {
            out += &format!("- {}\n", escape(note));
        }
    }
    out
}

/// Keeps text from being read as markup or as another column.
fn escape(s: &str) -> String {
    s.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

fn table(heads: &[String], rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|c| escape(c)).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: String = (0..heads.len()).map(|c| if right(c) { "---:|" } else { "---|" }).collect();
    let mut out = line(heads) + "|" + &rule + "\n";
    for row in rows {
        out += &line(row);
    }
    out
}
