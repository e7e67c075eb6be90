//! Figures as lists of marks, drawn once for pages, SVG files and PNG files.

pub mod charts;
mod font;
mod png;
mod svg;

use std::fmt;

/// A figure. Coordinates are pixels from the upper left corner.
#[derive(Debug, Clone, Default)]
pub struct Figure {
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
    /// What it shows, in a few words.
    pub title: String,
    /// What can be seen in it, for those who cannot see it.
    pub description: String,
    /// Drawn in this order.
    pub marks: Vec<Mark>,
}

/// Something drawn.
#[derive(Debug, Clone)]
pub enum Mark {
    /// A filled rectangle.
    Rect {
        /// Left, top, width, height.
        at: [f64; 4],
        /// Its colour.
        ink: Ink,
        /// Shown when pointed at; empty for none.
        tip: String,
    },
    /// A line through points.
    Line {
        /// `(x, y)` of each.
        points: Vec<(f64, f64)>,
        /// Its colour.
        ink: Ink,
        /// Its width.
        width: f64,
        /// Whether it is broken.
        dashed: bool,
    },
    /// A disc.
    Disc {
        /// Its centre.
        at: (f64, f64),
        /// Its radius.
        radius: f64,
        /// Its colour.
        ink: Ink,
        /// Shown when pointed at; empty for none.
        tip: String,
    },
    /// A line of text.
    Text {
        /// Where its base line begins, has its middle, or ends.
        at: (f64, f64),
        /// Which of these.
        anchor: Anchor,
        /// Height of the letters' square.
        size: f64,
        /// Its colour.
        ink: Ink,
        /// The text.
        text: String,
    },
}

/// How text lies at its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// The point is its beginning.
    Start,
    /// Its middle.
    Middle,
    /// Its end.
    End,
}

/// A colour by what it means. Pages choose it to suit light or dark; files have the light one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ink {
    /// Text and axes.
    Text,
    /// Less important text.
    Dim,
    /// Grid lines.
    Grid,
    /// A series of data, by number.
    Series(usize),
    /// From nothing, 0, to the worst, 1.
    Heat(f64),
}

/// Colours of series, for light and dark pages: distinct to the colour-blind, 3:1 against their page.
const SERIES: [(&str, &str); 8] = [
    ("#0b62c4", "#6cb2ff"),
    ("#c2410c", "#ff9a5c"),
    ("#0f766e", "#4fd1bd"),
    ("#9d2dab", "#e58bf0"),
    ("#8a6d00", "#e6c34a"),
    ("#4d5560", "#b4bcc8"),
    ("#b0124f", "#ff85b0"),
    ("#3d7a0f", "#a0d468"),
];
/// Text, dim text, grid, page, heat; light and dark.
const PAGE: [(&str, &str, &str); 5] = [
    ("fg", "#1c1e21", "#e6e8ec"),
    ("dim", "#59606a", "#a3abb6"),
    ("grid", "#dfe2e6", "#363b43"),
    ("bg", "#ffffff", "#16181c"),
    ("heat", "#e4572e", "#c2410c"),
];
/// How much of the heat's colour the worst value has: text on it must stay readable.
const HOTTEST: f64 = 0.66;

impl Ink {
    /// For a page, whose style has the variables of [`style`].
    pub(crate) fn css(self) -> String {
        match self {
            Ink::Text => "var(--fg)".into(),
            Ink::Dim => "var(--dim)".into(),
            Ink::Grid => "var(--grid)".into(),
            Ink::Series(i) => format!("var(--s{})", i % SERIES.len()),
            Ink::Heat(t) => format!("color-mix(in srgb,var(--heat) {:.0}%,var(--bg))", 100.0 * HOTTEST * t.clamp(0.0, 1.0)),
        }
    }

    /// Red, green and blue on a light page.
    fn rgb(self) -> [u8; 3] {
        match self {
            Ink::Text => hex(PAGE[0].1),
            Ink::Dim => hex(PAGE[1].1),
            Ink::Grid => hex(PAGE[2].1),
            Ink::Series(i) => hex(SERIES[i % SERIES.len()].0),
            Ink::Heat(t) => {
                let (hot, part) = (hex(PAGE[4].1), HOTTEST * t.clamp(0.0, 1.0));
                hot.map(|c| (f64::from(c) * part + 255.0 * (1.0 - part)).round() as u8)
            }
        }
    }
}

fn hex(text: &str) -> [u8; 3] {
    let n = u32::from_str_radix(&text[1..], 16).unwrap_or(0);
    [(n >> 16) as u8, (n >> 8) as u8, n as u8]
}

/// The variables that pages with figures need, as a style sheet for light and dark.
pub(crate) fn style() -> String {
    let light = PAGE.iter().map(|(name, light, _)| format!("--{name}:{light};")).collect::<String>();
    let dark = PAGE.iter().map(|(name, _, dark)| format!("--{name}:{dark};")).collect::<String>();
    let series = |dark: bool| {
        let one = |(i, s): (usize, &(&str, &str))| format!("--s{i}:{};", if dark { s.1 } else { s.0 });
        SERIES.iter().enumerate().map(one).collect::<String>()
    };
    let (s, d) = (series(false), series(true));
    format!(":root{{color-scheme:light dark;{light}{s}}}@media(prefers-color-scheme:dark){{:root{{{dark}{d}}}}}\n")
}

impl Figure {
    /// An empty figure.
    pub fn new(width: f64, height: f64, title: impl Into<String>) -> Self {
        Figure { width, height, title: title.into(), ..Figure::default() }
    }

    /// As a file of its own.
    pub fn to_svg(&self) -> String {
        svg::file(self)
    }

    /// For a page; `id` must not occur twice in it.
    pub(crate) fn to_inline_svg(&self, id: &str) -> String {
        svg::inline(self, id)
    }

    /// As an image with two dots per pixel.
    pub fn to_png(&self) -> bitsmith_formats::Result<Vec<u8>> {
        png::encode(self, 2.0)
    }

    fn text(&mut self, at: (f64, f64), anchor: Anchor, size: f64, ink: Ink, text: impl Into<String>) {
        self.marks.push(Mark::Text { at, anchor, size, ink, text: text.into() });
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), ink: Ink, width: f64) {
        self.marks.push(Mark::Line { points: vec![from, to], ink, width, dashed: false });
    }
}

impl fmt::Display for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure() -> Figure {
        let mut f = Figure::new(200.0, 100.0, "A <figure>");
        f.description = "one & two".into();
        f.text((100.0, 50.0), Anchor::Middle, 14.0, Ink::Text, "HIHI ± 3");
        f.line((10.0, 80.0), (190.0, 80.0), Ink::Grid, 1.0);
        f.marks.push(Mark::Rect { at: [0.0, 0.0, 20.0, 20.0], ink: Ink::Heat(1.0), tip: "hot".into() });
        f.marks.push(Mark::Disc { at: (180.0, 20.0), radius: 6.0, ink: Ink::Series(0), tip: String::new() });
        f
    }

    #[test]
    fn svg_is_escaped_and_named() {
        for svg in [figure().to_svg(), figure().to_inline_svg("f")] {
            assert!(svg.contains("A &lt;figure&gt;") && svg.contains("one &amp; two") && svg.contains("<title>hot</title>"));
            assert!(svg.trim_end().ends_with("</svg>"));
        }
        assert!(figure().to_svg().contains("xmlns=") && !figure().to_svg().contains("var("));
        assert!(figure().to_inline_svg("f").contains("var(--fg)"));
    }

    #[test]
    fn png_has_the_marks() {
        let bytes = figure().to_png().unwrap();
        let image = tiny_skia::Pixmap::decode_png(&bytes).unwrap();
        assert_eq!((image.width(), image.height()), (400, 200));
        let at = |x: f64, y: f64| {
            let p = image.pixel((x * 2.0) as u32, (y * 2.0) as u32).unwrap();
            [p.red(), p.green(), p.blue()]
        };
        assert_eq!(at(10.0, 10.0), Ink::Heat(1.0).rgb());
        assert_eq!(at(180.0, 20.0), Ink::Series(0).rgb());
        assert_eq!(at(60.0, 95.0), [255; 3]);
        // Letters stand in the middle, between their base line and the height of capitals, and nowhere else.
        let dark = |x: f64| (38..52).any(|y| at(x, f64::from(y))[0] < 120);
        let columns: Vec<u32> = (25..180).filter(|x| dark(f64::from(*x))).collect();
        let (first, last) = (columns[0], *columns.last().unwrap());
        assert!(columns.len() > 10 && (i64::from(first + last) - 200).abs() <= 6, "{first} {last}");
    }

    #[test]
    fn text_has_a_width() {
        let (narrow, wide) = (font::width("iii", 10.0), font::width("WWW", 10.0));
        assert!(narrow > 5.0 && wide > 2.0 * narrow && wide < 40.0, "{narrow} {wide}");
        assert!((font::width("WWW", 20.0) - 2.0 * wide).abs() < 1e-9);
    }
}
