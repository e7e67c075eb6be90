//! The report as one HTML page: no scripts, no other files, light or dark as the reader's system is.

use super::{COLUMNS, Report, number};

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c1e21;--dim:#626870;--bg:#fff;--line:#dfe2e6;--head:#f5f6f8;--good:#17743b;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--fg:#e4e6ea;--dim:#9aa1ab;--bg:#16181c;--line:#33373e;--head:#1f2228;--good:#5cc98a;--bad:#ff8a7a}}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2rem 1.25rem}
h1{font-size:1.5rem;margin:0 0 1rem}
h2{font-size:1.1rem;margin:2rem 0 .5rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:0 0 1.5rem}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap}
th,td{padding:.35rem .75rem;border-bottom:1px solid var(--line);text-align:left}
th{background:var(--head);font-weight:600}
.n{text-align:right}
.dim{color:var(--dim)}
.held{color:var(--good)}
.failed{color:var(--bad);font-weight:600}
";

pub(super) fn render(report: &Report) -> String {
    let title = escape(&report.model);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
    );
    if !report.facts.is_empty() {
        out += "<dl>\n";
        for (name, value) in &report.facts {
            out += &format!("<dt>{}</dt><dd>{}</dd>\n", escape(name), escape(value));
        }
        out += "</dl>\n";
    }
    if !report.rows.is_empty() {
        let heads = COLUMNS.map(|(head, _)| head.to_string());
        let cells: Vec<Vec<String>> = report.rows.iter().map(|r| r.cells().map(|c| escape(&c)).to_vec()).collect();
        out += &table(&heads, &cells, |c| COLUMNS[c].1);
    }
    if let Some(line) = report.measured_on() {
        out += &format!("<p class=\"dim\">{}</p>\n", escape(&line));
    }
    if let Some((heads, cells)) = report.domain_table() {
        let cells: Vec<Vec<String>> = cells.iter().map(|r| r.iter().map(|c| escape(c)).collect()).collect();
        out += &section("Mean KLD by domain", &table(&heads, &cells, |c| c >= 2));
    }
    if !report.gates.is_empty() {
        let row = |(target, g): &(String, crate::GateOutcome)| {
            let result = if g.held { "<span class=\"held\">held</span>" } else { "<span class=\"failed\">failed</span>" };
            vec![escape(target), escape(&g.gate), escape(&number(g.value)), result.to_string()]
        };
        let heads = ["target", "gate", "value", "result"].map(String::from);
        out += &section("Gates", &table(&heads, &report.gates.iter().map(row).collect::<Vec<_>>(), |c| c == 2));
    }
    if !report.notes.is_empty() {
        let notes: String = report.notes.iter().map(|n| format!("<li>{}</li>\n", escape(n))).collect();
        out += &section("Notes", &format!("<ul>\n{notes}</ul>\n"));
    }
    out + "</main>\n</body>\n</html>\n"
}

fn section(title: &str, body: &str) -> String {
    format!("<section>\n<h2>{}</h2>\n{body}</section>\n", escape(title))
}

/// A table of cells that are escaped already.
fn table(heads: &[String], rows: &[Vec<String>], right: impl Fn(usize) -> bool) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cell = |(c, s): (usize, &String)| match right(c) {
            true => format!("<{tag} class=\"n\">{s}</{tag}>"),
            false => format!("<{tag}>{s}</{tag}>"),
        };
        format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
    };
    let heads: Vec<String> = heads.iter().map(|h| escape(h)).collect();
    let body: String = rows.iter().map(|r| line("td", r)).collect();
    format!("<div class=\"wide\"><table>\n<thead>{}</thead>\n<tbody>\n{body}</tbody>\n</table></div>\n", line("th", &heads))
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
