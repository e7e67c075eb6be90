//! The font of PNG figures, by which text is measured for all of them.

use std::sync::OnceLock;
use ttf_parser::{Face, OutlineBuilder};

static BYTES: &[u8] = include_bytes!("font.ttf");

fn face() -> &'static Face<'static> {
    static FACE: OnceLock<Face<'static>> = OnceLock::new();
    FACE.get_or_init(|| Face::parse(BYTES, 0).expect("the built-in font is whole"))
}

/// Width of a line of text. Other fonts are mostly narrower.
pub fn width(text: &str, size: f64) -> f64 {
    let units: u32 = text.chars().map(advance).sum();
    f64::from(units) * size / f64::from(face().units_per_em())
}

/// Letters that the font lacks are as wide as a question mark, which stands for them.
fn advance(c: char) -> u32 {
    u32::from(face().glyph_hor_advance(glyph(c)).unwrap_or(0))
}

fn glyph(c: char) -> ttf_parser::GlyphId {
    face().glyph_index(c).or_else(|| face().glyph_index('?')).unwrap_or_default()
}

/// Draws a line of text that begins at `(x, y)`, letter by letter, as outlines in the figure's coordinates.
pub fn outline(text: &str, (x, y): (f64, f64), size: f64, path: &mut tiny_skia::PathBuilder) {
    let scale = size / f64::from(face().units_per_em());
    let mut at = x;
    for c in text.chars() {
        face().outline_glyph(glyph(c), &mut Pen { path, x: at, y, scale });
        at += f64::from(advance(c)) * scale;
    }
}

/// Turns a glyph's units, which grow upwards, into the figure's.
struct Pen<'a> {
    path: &'a mut tiny_skia::PathBuilder,
    x: f64,
    y: f64,
    scale: f64,
}

impl Pen<'_> {
    fn at(&self, x: f32, y: f32) -> (f32, f32) {
        ((self.x + f64::from(x) * self.scale) as f32, (self.y - f64::from(y) * self.scale) as f32)
    }
}

impl OutlineBuilder for Pen<'_> {
    fn move_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.move_to(x, y);
    }
    fn line_to(&mut self, x: f32, y: f32) {
        let (x, y) = self.at(x, y);
        self.path.line_to(x, y);
    }
    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        let ((x1, y1), (x, y)) = (self.at(x1, y1), self.at(x, y));
        self.path.quad_to(x1, y1, x, y);
    }
    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        let ((x1, y1), (x2, y2), (x, y)) = (self.at(x1, y1), self.at(x2, y2), self.at(x, y));
        self.path.cubic_to(x1, y1, x2, y2, x, y);
    }
    fn close(&mut self) {
        self.path.close();
    }
}
