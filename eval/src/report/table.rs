//! A table, for every place where one is shown.

use super::escape;
use super::format::ABSENT;
use serde::Serialize;

/// A table.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// Names it in pages and files.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// Heads of the columns, and whether numbers stand in them.
    pub heads: Vec<(String, bool)>,
    /// The rows.
    pub rows: Vec<Vec<Cell>>,
}

/// A cell.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cell {
    /// What is read.
    pub text: String,
    /// What is sorted by, if it is a number.
    pub value: Option<f64>,
    /// Whether it says that something is in order, or not.
    pub good: Option<bool>,
}

impl Cell {
    /// A number as it should be read.
    pub fn number(text: impl Into<String>, value: f64) -> Self {
        Cell { text: text.into(), value: Some(value).filter(|v| v.is_finite()), good: None }
    }
    /// A number, or the sign that there is none.
    pub fn maybe<T: Copy>(value: Option<T>, text: impl FnOnce(T) -> String, number: impl FnOnce(T) -> f64) -> Self {
        value.map_or_else(|| ABSENT.into(), |v| Cell::number(text(v), number(v)))
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Cell { text: text.into(), ..Cell::default() }
    }
}

impl Table {
    /// A table without rows.
    pub fn new(id: &str, title: &str, heads: &[(&str, bool)]) -> Self {
        let heads = heads.iter().map(|(head, right)| (head.to_string(), *right)).collect();
        Table { id: id.into(), title: title.into(), heads, rows: Vec::new() }
    }

    /// The table without columns in which no row has anything.
    pub fn without_empty_columns(mut self) -> Self {
        let used = |c: usize| self.rows.iter().any(|r| !r[c].text.is_empty() && r[c].text != ABSENT);
        let keep: Vec<bool> = (0..self.heads.len()).map(used).collect();
        let mut kept = keep.iter();
        self.heads.retain(|_| *kept.next().unwrap_or(&true));
        for row in &mut self.rows {
            let mut kept = keep.iter();
            row.retain(|_| *kept.next().unwrap_or(&true));
        }
        self
    }

    /// Columns two spaces apart, numbers to the right.
    pub fn to_text(&self) -> String {
        let chars = |s: &str| s.chars().count();
        let width = |c: usize| self.rows.iter().map(|r| chars(&r[c].text)).chain([chars(&self.heads[c].0)]).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let pad = |(c, s): (usize, &str)| {
            let space = " ".repeat(widths[c] - chars(s));
            if self.heads[c].1 { space + s } else { s.to_string() + &space }
        };
        let line = |cells: Vec<&str>| {
            let padded: Vec<String> = cells.into_iter().enumerate().map(pad).collect();
            format!("{}\n", padded.join("  ").trim_end())
        };
        let mut out = line(self.heads.iter().map(|h| h.0.as_str()).collect());
        for row in &self.rows {
            out += &line(row.iter().map(|c| c.text.as_str()).collect());
        }
        out
    }

    /// As Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let cell = |c: &Cell| match c.good {
            Some(false) => format!("**{}**", markdown(&c.text)),
            _ => markdown(&c.text),
        };
        let rule: String = self.heads.iter().map(|(_, right)| if *right { "---:|" } else { "---|" }).collect();
        let mut out = line(self.heads.iter().map(|h| markdown(&h.0)).collect()) + "|" + &rule + "\n";
        for row in &self.rows {
            out += &line(row.iter().map(cell).collect());
        }
        out
    }

    /// As LaTeX with booktabs, to be put into a `table`.
    pub fn to_latex(&self) -> String {
        let columns: String = self.heads.iter().map(|(_, right)| if *right { 'r' } else { 'l' }).collect();
        let line = |cells: Vec<String>| format!("{} \\\\\n", cells.join(" & "));
        let mut out =
            format!("% {}. Needs \\usepackage{{booktabs}}.\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n", latex(&self.title));
        out += &line(self.heads.iter().map(|h| latex(&h.0)).collect());
        out += "\\midrule\n";
        for row in &self.rows {
            out += &line(row.iter().map(|c| latex(&c.text)).collect());
        }
        out + "\\bottomrule\n\\end{tabular}\n"
    }

    /// As HTML, with buttons that sort by a column.
    pub(super) fn to_html(&self) -> String {
        let class = |c: usize| if self.heads[c].1 { " class=\"n\"" } else { "" };
        let head = |(c, h): (usize, &(String, bool))| {
            format!("<th scope=\"col\"{}><button type=\"button\">{}</button></th>", class(c), escape(&h.0))
        };
        let cell = |(c, cell): (usize, &Cell)| {
            let value = cell.value.map(|v| format!(" data-v=\"{v}\"")).unwrap_or_default();
            let text = match cell.good {
                Some(true) => format!("<span class=\"held\">{}</span>", escape(&cell.text)),
                Some(false) => format!("<span class=\"failed\">{}</span>", escape(&cell.text)),
                None => escape(&cell.text),
            };
            match c {
                0 => format!("<th scope=\"row\"{value}>{text}</th>"),
                _ => format!("<td{}{value}>{text}</td>", class(c)),
            }
        };
        let heads: String = self.heads.iter().enumerate().map(head).collect();
        let row = |r: &Vec<Cell>| format!("<tr>{}</tr>\n", r.iter().enumerate().map(cell).collect::<String>());
        let rows: String = self.rows.iter().map(row).collect();
        let (id, title) = (&self.id, escape(&self.title));
        format!(
            "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{title}\"><table id=\"{id}\" class=\"sorts\">\n\
             <caption class=\"vh\">{title}</caption>\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
        )
    }
}

/// Keeps text from being read as markup or as another column.
pub(super) fn markdown(s: &str) -> String {
    s.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// Keeps text from being read as commands.
fn latex(s: &str) -> String {
    let mut out = String::new();
    for c in s.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out += "\\textbackslash{}",
            '~' => out += "\\textasciitilde{}",
            '^' => out += "\\textasciicircum{}",
            '<' => out += "\\textless{}",
            '>' => out += "\\textgreater{}",
            '±' => out += "$\\pm$",
            '−' => out += "$-$",
            '×' => out += "$\\times$",
            'Δ' => out += "$\\Delta$",
            '–' => out += "--",
            '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut t = Table::new("t", "A table", &[("name", false), ("empty", true), ("size_%", true)]);
        t.rows.push(vec!["a|b".into(), ABSENT.into(), Cell::number("1 ± 2", 1.0)]);
        t.rows.push(vec!["<i>".into(), ABSENT.into(), Cell { good: Some(false), ..Cell::number("10", 10.0) }]);
        t.without_empty_columns()
    }

    #[test]
    fn every_form() {
        assert_eq!(table().to_text(), "name  size_%\na|b    1 ± 2\n<i>       10\n");
        assert_eq!(table().to_markdown(), "| name | size_% |\n|---|---:|\n| a\\|b | 1 ± 2 |\n| &lt;i> | **10** |\n");
        let latex = table().to_latex();
        assert!(
            latex.contains("\\begin{tabular}{lr}\n\\toprule\nname & size\\_\\% \\\\\n\\midrule\na|b & 1 $\\pm$ 2 \\\\\n"),
            "{latex}"
        );
        assert!(latex.contains("\\textless{}i\\textgreater{} & 10 \\\\\n\\bottomrule"));
        let html = table().to_html();
        assert!(
            html.contains("<td class=\"n\" data-v=\"10\"><span class=\"failed\">10</span></td>") && html.contains("&lt;i&gt;")
        );
        assert_eq!(html.matches("<tr>").count(), html.matches("</tr>").count());
    }
}
