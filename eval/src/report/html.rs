//! The report as one HTML page that needs no other file: complete without its script, which adds sorting, export and choices.

use super::format::{nats, percent, without_folders};
use super::table::Table;
use super::{Report, ReportRow, charts, escape, heat::Grid, tables};
use crate::figure::{self, Figure};
use crate::landing::{Group, Passage, PassageToken};
use crate::map::QualityMap;
use crate::results::Kld;
use serde_json::json;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Heatmaps of more layers have no room for numbers in their cells.
const LAYERS_WITH_NUMBERS: usize = 12;
/// Passages that are shown of each artifact when there are many artifacts.
const FEW_PASSAGES: usize = 5;

pub(super) fn render(report: &Report) -> String {
    let (heat, data) = report.map.as_ref().map(heatmap).unwrap_or_default();
    let sections = [header(report), overview(report), domains(report), heat, landing(report), rest(report)];
    fill(&[
        ("title", escape(&report.model)),
        ("style", figure::style() + STYLE),
        ("body", sections.concat()),
        // A less-than sign could end the script.
        ("data", data.to_string().replace('<', "\\u003c")),
        ("script", SCRIPT.to_string()),
    ])
}

/// The page with its places filled. What is put in is not looked at again.
fn fill(values: &[(&str, String)]) -> String {
    let mut parts = PAGE.split("{{");
    let mut out = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (name, rest) = part.split_once("}}").unwrap_or((part, ""));
        if let Some((_, value)) = values.iter().find(|(n, _)| *n == name) {
            out += value;
        }
        out += rest;
    }
    out
}

fn section(id: &str, title: &str, body: &str) -> String {
    match body.is_empty() {
        true => String::new(),
        false => format!("<section aria-labelledby=\"{id}-h\">\n<h2 id=\"{id}-h\">{}</h2>\n{body}</section>\n", escape(title)),
    }
}

/// A table with buttons that export it.
fn table(t: &Table) -> String {
    let forms = [("csv", "CSV"), ("md", "Markdown"), ("tex", "LaTeX")];
    t.to_html() + &tools(&t.id, &t.title, &forms)
}

/// A figure with buttons that save it.
fn picture(f: &Figure, id: &str) -> String {
    let svg = f.to_inline_svg(id);
    let tools = tools(id, &f.title, &[("svg", "SVG"), ("png", "PNG")]);
    format!(
        "<figure><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"{}\">{svg}</div>{tools}</figure>\n",
        escape(&f.title)
    )
}

fn tools(of: &str, what: &str, forms: &[(&str, &str)]) -> String {
    let button = |(form, name): &(&str, &str)| {
        format!("<button type=\"button\" data-form=\"{form}\" aria-label=\"Save {} as {name}\">{name}</button>", escape(what))
    };
    format!("<div class=\"tools\" data-of=\"{of}\" hidden>{}</div>\n", forms.iter().map(button).collect::<String>())
}

/// A choice among panels.
fn choice(group: &str, label: &str, names: &[String]) -> String {
    let option = |n: &String| format!("<option>{}</option>", escape(n));
    let options: String = names.iter().map(option).collect();
    format!("<div class=\"picks\" hidden><label>{label} <select data-group=\"{group}\">{options}</select></label></div>\n")
}

fn header(report: &Report) -> String {
    let summary = report.summary();
    let said: String = summary.sentences.iter().map(|s| format!("<li>{}</li>\n", escape(s))).collect();
    let list = if said.is_empty() { said } else { format!("<ul class=\"said\">\n{said}</ul>\n") };
    format!("<h1>{}</h1>\n<p class=\"lead\">{}</p>\n{list}", escape(&report.model), escape(&summary.headline))
}

fn overview(report: &Report) -> String {
    let mut body = String::new();
    if !report.rows.is_empty() {
        body += &table(&tables::artifacts(report).without_empty_columns());
    }
    if let Some(line) = report.measured_on() {
        body += &format!("<p class=\"dim\">{}</p>\n", escape(&line));
    }
    let mut out = section("artifacts", "Artifacts", &body);
    if let Some(f) = charts::pareto(report) {
        let words = format!("<p class=\"dim\">{}</p>\n", escape(&f.description));
        out += &section("pareto", "Size against divergence", &(words + &picture(&f, "pareto")));
    }
    out
}

fn domains(report: &Report) -> String {
    let mut body = String::new();
    if let Some(f) = charts::domains(report) {
        body += "<p class=\"dim\">Mean KL divergence by kind of text, with its standard error; beside it the change of perplexity.</p>\n";
        body += &picture(&f, "domain-bars");
    }
    if let Some(t) = tables::domains(report) {
        body += &format!("<details><summary>The numbers as a table</summary>\n{}</details>\n", table(&t));
    }
    section("by-domain", "By kind of text", &body)
}

/// The map's section, and the values that its script chooses from.
fn heatmap(map: &QualityMap) -> (String, serde_json::Value) {
    let codecs: Vec<&String> = map.codecs.iter().filter(|c| Grid::of(map, c, None).is_some()).collect();
    let Some(first) = codecs.first().and_then(|c| Grid::of(map, c, None)) else { return Default::default() };
    let domains: Vec<&str> =
        map.data.iter().map(|d| d.domain.as_str()).filter(|d| Grid::of(map, codecs[0], Some(d)).is_some()).collect();
    let mut values = serde_json::Map::new();
    for codec in &codecs {
        let choices = std::iter::once(None).chain(domains.iter().copied().map(Some));
        let of = |domain: Option<&str>| {
            let short = |v: &Option<f64>| v.and_then(|v| format!("{v:.2e}").parse::<f64>().ok());
            let flat = Grid::of(map, codec, domain).map(|g| g.values.iter().flatten().map(short).collect::<Vec<_>>());
            (domain.unwrap_or_default().to_string(), json!(flat))
        };
        values.insert(codec.to_string(), choices.map(of).collect::<serde_json::Map<_, _>>().into());
    }
    let option = |value: &str, name: &str| format!("<option value=\"{}\">{}</option>", escape(value), escape(name));
    let options: String = codecs.iter().map(|c| option(c, c)).collect();
    let of_domains: String = domains.iter().map(|d| option(d, d)).collect();
    let mut body =
        "<p>What quantizing each tensor alone adds to the divergence, the rest of the model left as it is.</p>\n".to_string();
    body += &format!(
        "<div class=\"picks\" hidden><label>Codec <select id=\"heat-codec\">{options}</select></label>\n\
         <label>Text <select id=\"heat-domain\">{}{of_domains}</select></label></div>\n\
         <p id=\"heat-words\" aria-live=\"polite\">{}</p>\n",
        option("", "all"),
        escape(&first.describe())
    );
    body += &grid(&first);
    body += &format!(
        "<div class=\"scale\"><span>{}</span><i></i><span>{} nats per token</span></div>\n",
        nats(first.low),
        nats(first.high)
    );
    let mut out = section("map", "By layer and role", &body);
    if let Some(f) = figure::charts::depth(map) {
        let words = "<p class=\"dim\">How far the hidden states are from the source's when everything is quantized.</p>\n";
        out += &section("depth", "By depth", &(words.to_string() + &picture(&f, "depth-lines")));
    }
    (out, json!({ "values": values, "low": first.low, "high": first.high }))
}

fn grid(g: &Grid) -> String {
    let name = |l: &Option<usize>| l.map_or_else(|| "–".to_string(), |l| l.to_string());
    let heads: String = g.layers.iter().map(|l| format!("<th scope=\"col\">{}</th>", name(l))).collect();
    let mut rows = String::new();
    for (part, values) in g.parts.iter().zip(&g.values) {
        let part = escape(part);
        let cell = |(layer, value): (&Option<usize>, &Option<f64>)| {
            let place = layer.map_or(String::new(), |l| format!(" of layer {l}"));
            let (t, text) = value.map_or((0.0, String::new()), |v| (66.0 * g.heat(v), nats(v)));
            format!("<td style=\"--t:{t:.0}%\" data-name=\"{part}{place}\">{text}</td>")
        };
        let cells: String = g.layers.iter().zip(values).map(cell).collect();
        rows += &format!("<tr><th scope=\"row\">{part}</th>{cells}</tr>\n");
    }
    let class = if g.layers.len() > LAYERS_WITH_NUMBERS { "heat many" } else { "heat" };
    format!(
        "<div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Divergence by layer and role\"><table id=\"heat\" class=\"{class}\">\n\
         <caption class=\"vh\">Divergence by layer and role, nats per token</caption>\n\
         <thead><tr><th scope=\"col\">layer</th>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// Where in the text the divergence lies, one panel per artifact and text.
fn landing(report: &Report) -> String {
    let with_text = |r: &ReportRow, k: &Kld| {
        if r.eval.kld.len() > 1 { format!("{}, {}", r.name(), without_folders(&k.data)) } else { r.name() }
    };
    let panels: Vec<(String, usize, &Kld)> = report
        .rows
        .iter()
        .enumerate()
        .flat_map(|(i, r)| r.eval.kld.iter().map(move |k| (with_text(r, k), i, k)))
        .filter(|(_, _, k)| k.landing.is_some())
        .collect();
    if panels.is_empty() {
        return String::new();
    }
    let names: Vec<String> = panels.iter().map(|p| p.0.clone()).collect();
    let shown = if panels.len() > 6 { FEW_PASSAGES } else { usize::MAX };
    let chosen = if names.len() > 1 { choice("landing", "Artifact", &names) } else { String::new() };
    let (mut groups, mut worst) = (String::new(), String::new());
    for (n, (name, row, kld)) in panels.iter().enumerate() {
        let Some(landing) = &kld.landing else { continue };
        let key = escape(name);
        let title = if names.len() > 1 { format!("<h3>{key}</h3>\n") } else { String::new() };
        let body = panel(n, *row, kld);
        groups += &format!("<div data-panel=\"landing\" data-key=\"{key}\">\n{title}{body}</div>\n");
        let list: String = landing.passages.iter().take(shown).map(|p| passage(p, hottest(&landing.passages))).collect();
        worst += &format!("<div data-panel=\"landing\" data-key=\"{key}\">\n{title}<ol class=\"passages\">\n{list}</ol></div>\n");
    }
    let about = "<p>The passages where the artifact is furthest from its source. The stronger a token's colour, the further apart were \
                 the predictions that should have led to it.</p>\n";
    section("landing", "Where in the text it lands", &(chosen + &groups))
        + &section("passages", "Worst passages", &(about.to_string() + &worst))
}

fn panel(n: usize, row: usize, kld: &Kld) -> String {
    let Some(landing) = &kld.landing else { return String::new() };
    let mut body = String::new();
    if let Some(f) = charts::classes(&landing.classes, row, kld.summary.mean) {
        body += &picture(&f, &format!("classes-{n}"));
    }
    let tables: [(&str, &str, &str, &[Group]); 4] = [
        ("next", "By the token to be predicted", "next token", &landing.classes),
        ("after", "By the token read last", "last token", &landing.after),
        ("place", "By position in the window", "position", &landing.positions),
        ("sure", "By the source's confidence", "its favourite's probability", &landing.confidence),
    ];
    for (id, title, head, groups) in tables {
        let t = tables::groups(&format!("{id}-{n}"), title, head, groups);
        body += &format!("<details><summary>{title}</summary>\n{}</details>\n", table(&t));
    }
    for (d, domain) in landing.domains.iter().enumerate() {
        let title = format!("In {}: {} of all divergence", domain.domain, percent(domain.share));
        let t = tables::groups(&format!("domain-{n}-{d}"), &title, "next token", &domain.classes);
        body += &format!("<details><summary>{}</summary>\n{}</details>\n", escape(&title), table(&t));
    }
    body
}

/// The divergence that is shown in the strongest colour: few tokens are beyond it.
fn hottest(passages: &[Passage]) -> f64 {
    let mut klds: Vec<f64> = passages.iter().flat_map(|p| p.tokens.iter().filter_map(|t| t.kld)).collect();
    klds.sort_by(f64::total_cmp);
    crate::stats::percentile(&klds, 0.98).max(f64::MIN_POSITIVE)
}

fn passage(p: &Passage, hottest: f64) -> String {
    let token = |t: &PassageToken| {
        let text = escape(&t.text).replace('\n', "↵\n");
        match t.kld {
            None => format!("<span class=\"c\">{text}</span>"),
            // A square root, so that middling values are told from small ones.
            Some(kld) => match (66.0 * (kld / hottest).clamp(0.0, 1.0).sqrt()).round() {
                heat if heat < 4.0 => text,
                heat => format!("<span style=\"--t:{heat}%\" title=\"{}\">{text}</span>", nats(kld)),
            },
        }
    };
    let text: String = p.tokens.iter().map(token).collect();
    let place = format!("{}, window {}, token {}: {} nats per token", p.domain, p.window, p.position, nats(p.kld));
    format!("<li><div class=\"dim\">{}</div>\n<p class=\"passage\">{text}</p>\n{}</li>\n", escape(&place), disagreements(p))
}

/// The tokens of a passage where the two models are furthest apart, as a table.
fn disagreements(p: &Passage) -> String {
    let mut worst: Vec<&PassageToken> = p.tokens.iter().filter(|t| t.kld.is_some()).collect();
    worst.sort_by(|a, b| b.kld.unwrap_or(0.0).total_cmp(&a.kld.unwrap_or(0.0)));
    let code = |s: &str| format!("<code>{}</code>", escape(&format!("{s:?}")));
    let row = |t: &&PassageToken| {
        let p = |p: Option<f64>| p.map_or_else(String::new, percent);
        let (theirs, ours) = t.tops.as_ref().map_or(("the same".into(), "the same".into()), |(a, b)| (code(a), code(b)));
        let (kld, text) = (nats(t.kld.unwrap_or(0.0)), code(&t.text));
        format!(
            "<tr><th scope=\"row\">{text}</th><td class=\"n\">{kld}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{theirs}</td><td>{ours}</td></tr>\n",
            p(t.p_against),
            p(t.p)
        )
    };
    let rows: String = worst.iter().take(4).map(row).collect();
    let heads = ["token", "KLD", "its probability, source", "artifact", "likeliest, source", "artifact"];
    let heads: String = heads.iter().map(|h| format!("<th scope=\"col\"><span class=\"h\">{h}</span></th>")).collect();
    format!(
        "<details><summary>Its worst tokens</summary><div class=\"wide\" tabindex=\"0\" role=\"region\" aria-label=\"Worst tokens\">\
         <table class=\"plain\"><thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div></details>\n"
    )
}

fn rest(report: &Report) -> String {
    let mut out = String::new();
    let pairs = report.pairs();
    let tables = [
        ("gates-s", "Gates", tables::gates(report)),
        ("tasks-s", "Tasks", tables::tasks(report)),
        ("pairs-s", "Are the differences real?", tables::pairs(&pairs)),
    ];
    for (id, title, t) in tables {
        out += &t.map_or(String::new(), |t| section(id, title, &table(&t)));
    }
    if !report.notes.is_empty() {
        let notes: String = report.notes.iter().map(|n| format!("<li>{}</li>\n", escape(n))).collect();
        out += &section("notes", "Notes", &format!("<ul>\n{notes}</ul>\n"));
    }
    if !report.facts.is_empty() {
        let facts: String = report.facts.iter().map(|(n, v)| format!("<dt>{}</dt><dd>{}</dd>\n", escape(n), escape(v))).collect();
        out += &section("facts", "How it was made", &format!("<dl>\n{facts}</dl>\n"));
    }
    out
}
