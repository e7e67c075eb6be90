//! Figures as PNG.

use super::{Anchor, Figure, Ink, Mark, font};
use bitsmith_formats::{Error, Result};
use tiny_skia::{Color, FillRule, LineCap, Paint, PathBuilder, Pixmap, Rect, Stroke, StrokeDash, Transform};

pub(super) fn encode(figure: &Figure, scale: f64) -> Result<Vec<u8>> {
    let side = |v: f64| (v * scale).ceil() as u32;
    let mut image = Pixmap::new(side(figure.width), side(figure.height))
        .ok_or_else(|| Error::failed(format!("a figure of {} × {} pixels", figure.width, figure.height)))?;
    image.fill(Color::WHITE);
    let scaled = Transform::from_scale(scale as f32, scale as f32);
    for mark in &figure.marks {
        draw(mark, &mut image, scaled);
    }
    image.encode_png().map_err(|e| Error::failed(format!("cannot write a PNG image: {e}")))
}

fn paint(ink: Ink) -> Paint<'static> {
    let [r, g, b] = ink.rgb();
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    paint.set_color_rgba8(r, g, b, 255);
    paint
}

fn draw(mark: &Mark, image: &mut Pixmap, scaled: Transform) {
    match mark {
        Mark::Rect { at: [x, y, w, h], ink, .. } => {
            if let Some(rect) = Rect::from_xywh(*x as f32, *y as f32, *w as f32, *h as f32) {
                image.fill_rect(rect, &paint(*ink), scaled, None);
            }
        }
        Mark::Line { points, ink, width, dashed } => {
            let mut path = PathBuilder::new();
            for (i, (x, y)) in points.iter().enumerate() {
                match i {
                    0 => path.move_to(*x as f32, *y as f32),
                    _ => path.line_to(*x as f32, *y as f32),
                }
            }
            let dash = dashed.then(|| StrokeDash::new(vec![4.0, 4.0], 0.0)).flatten();
            let stroke = Stroke { width: *width as f32, dash, line_cap: LineCap::Butt, ..Stroke::default() };
            if let Some(path) = path.finish() {
                image.stroke_path(&path, &paint(*ink), &stroke, scaled, None);
            }
        }
        Mark::Disc { at: (x, y), radius, ink, .. } => {
            if let Some(path) = PathBuilder::from_circle(*x as f32, *y as f32, *radius as f32) {
                image.fill_path(&path, &paint(*ink), FillRule::Winding, scaled, None);
            }
        }
        Mark::Text { at: (x, y), anchor, size, ink, text } => {
            let back = match anchor {
                Anchor::Start => 0.0,
                Anchor::Middle => 0.5,
                Anchor::End => 1.0,
            };
            let mut path = PathBuilder::new();
            font::outline(text, (x - back * font::width(text, *size), *y), *size, &mut path);
            if let Some(path) = path.finish() {
                image.fill_path(&path, &paint(*ink), FillRule::Winding, scaled, None);
            }
        }
    }
}
