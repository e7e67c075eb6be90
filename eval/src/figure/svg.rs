//! Figures as SVG.

use super::{Figure, Ink, Mark};
use crate::report::escape;

/// A file of its own, on white.
pub(super) fn file(figure: &Figure) -> String {
    let (w, h) = (figure.width, figure.height);
    let color = |ink: Ink| {
        let [r, g, b] = ink.rgb();
        format!("#{r:02x}{g:02x}{b:02x}")
    };
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
         font-family=\"system-ui,sans-serif\">\n<title>{}</title>\n<desc>{}</desc>\n\
         <rect width=\"{w}\" height=\"{h}\" fill=\"#ffffff\"/>\n{}</svg>\n",
        escape(&figure.title),
        escape(&figure.description),
        marks(figure, color)
    )
}

/// Part of a page, in the page's colours.
pub(super) fn inline(figure: &Figure, id: &str) -> String {
    let (w, h) = (figure.width, figure.height);
    format!(
        "<svg id=\"{id}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\">\n\
         <title id=\"{id}-t\">{}</title><desc id=\"{id}-d\">{}</desc>\n{}</svg>",
        escape(&figure.title),
        escape(&figure.description),
        marks(figure, Ink::css)
    )
}

fn marks(figure: &Figure, color: impl Fn(Ink) -> String) -> String {
    let tip = |tip: &str| if tip.is_empty() { String::new() } else { format!("<title>{}</title>", escape(tip)) };
    let mark = |mark: &Mark| match mark {
        Mark::Rect { at: [x, y, w, h], ink, tip: t } => {
            format!(
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" style=\"fill:{}\">{}</rect>\n",
                color(*ink),
                tip(t)
            )
        }
        Mark::Line { points, ink, width, dashed } => {
            let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let dash = if *dashed { ";stroke-dasharray:4 4" } else { "" };
            let color = color(*ink);
            format!("<polyline points=\"{}\" style=\"fill:none;stroke:{color};stroke-width:{width}{dash}\"/>\n", points.join(" "))
        }
        Mark::Disc { at: (x, y), radius, ink, tip: t } => {
            format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" style=\"fill:{}\">{}</circle>\n", color(*ink), tip(t))
        }
        Mark::Text { at: (x, y), anchor, size, ink, text } => {
            let color = color(*ink);
            let text = escape(text);
            format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" style=\"fill:{color}\">{text}</text>\n"
            )
        }
    };
    figure.marks.iter().map(mark).collect()
}
