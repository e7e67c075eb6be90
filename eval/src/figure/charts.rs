//! The charts of reports.

use super::{Anchor, Figure, Ink, Mark, font};
use crate::map::QualityMap;
use crate::report::format::{bytes, nats, percent};

const SMALL: f64 = 12.0;
const LABEL: f64 = 13.0;

/// An artifact on the Pareto chart.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// What it is called.
    pub label: String,
    /// Its size.
    pub bytes: u64,
    /// Its mean divergence, nats per token.
    pub kld: f64,
    /// Number of its colour.
    pub series: usize,
}

/// The points that no other beats in size and divergence both, from the smallest up.
pub fn front(points: &[Point]) -> Vec<&Point> {
    let mut sorted: Vec<&Point> = points.iter().collect();
    sorted.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(a.kld.total_cmp(&b.kld)));
    let mut best = f64::INFINITY;
    sorted.retain(|p| {
        let better = p.kld < best;
        best = best.min(p.kld);
        better
    });
    sorted
}

/// A scale of values along an axis, logarithmic.
struct Axis {
    low: f64,
    high: f64,
    /// Pixels of `low` and `high`.
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis over the values, with some room at both ends.
    fn over(values: impl Iterator<Item = f64> + Clone, from: f64, to: f64) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min).ln();
        let high = values.fold(f64::NEG_INFINITY, f64::max).ln();
        let room = (0.08 * (high - low)).max(0.2);
        Axis { low: low - room, high: high + room, from, to }
    }
    fn at(&self, value: f64) -> f64 {
        self.from + (value.ln() - self.low) / (self.high - self.low) * (self.to - self.from)
    }
    /// Round numbers within: powers of ten, and with little between the ends, 2 and 5 times those, or more.
    fn ticks(&self, base: f64) -> Vec<f64> {
        let steps: [&[f64]; 4] = [
            &[1.0],
            &[1.0, 2.0, 5.0],
            &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
            &[1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        ];
        let ticks = |factors: &[f64]| {
            let (first, last) = ((self.low.exp() / base).log10().floor() as i32, (self.high.exp() / base).log10().ceil() as i32);
            let all = (first..=last).flat_map(|e| factors.iter().map(move |f| base * f * 10f64.powi(e)));
            all.filter(|v| (self.low..=self.high).contains(&v.ln())).collect::<Vec<f64>>()
        };
        steps.iter().map(|s| ticks(s)).find(|t| t.len() >= 3).unwrap_or_else(|| ticks(steps[3]))
    }
}

/// Size against divergence, both logarithmic, with the line of those that no other beats. Nothing for fewer than two points.
pub fn pareto(points: &[Point]) -> Option<Figure> {
    // The logarithm of nothing has no place.
    let points: Vec<Point> = points.iter().filter(|p| p.kld > 0.0 && p.kld.is_finite() && p.bytes > 0).cloned().collect();
    if points.len() < 2 {
        return None;
    }
    let (width, height, left, bottom) = (760.0, 400.0, 74.0, 52.0);
    let mut f = Figure::new(width, height, "Size against divergence");
    let x = Axis::over(points.iter().map(|p| p.bytes as f64), left, width - 24.0);
    let y = Axis::over(points.iter().map(|p| p.kld), height - bottom, 30.0);
    let unit = [1u64 << 30, 1 << 20, 1 << 10].into_iter().find(|u| x.low.exp() >= *u as f64).unwrap_or(1) as f64;
    for tick in x.ticks(unit) {
        f.line((x.at(tick), 30.0), (x.at(tick), height - bottom), Ink::Grid, 1.0);
        f.text((x.at(tick), height - bottom + 18.0), Anchor::Middle, SMALL, Ink::Dim, short_bytes(tick));
    }
    for tick in y.ticks(1.0) {
        f.line((left, y.at(tick)), (width - 24.0, y.at(tick)), Ink::Grid, 1.0);
        f.text((left - 8.0, y.at(tick) + 4.0), Anchor::End, SMALL, Ink::Dim, nats(tick));
    }
    f.text((left, 18.0), Anchor::Start, LABEL, Ink::Text, "mean KL divergence, nats per token (lower is better)");
    f.text((width - 24.0, height - 12.0), Anchor::End, LABEL, Ink::Text, "size of the artifact (smaller is better)");
    let best = front(&points);
    let line = best.iter().map(|p| (x.at(p.bytes as f64), y.at(p.kld))).collect();
    f.marks.push(Mark::Line { points: line, ink: Ink::Dim, width: 1.5, dashed: true });
    // Labels take the first of four places where they hide neither another label nor a point.
    let discs: Vec<[f64; 4]> = points.iter().map(|p| [x.at(p.bytes as f64) - 7.0, y.at(p.kld) - 7.0, 14.0, 14.0]).collect();
    let mut taken: Vec<[f64; 4]> = Vec::new();
    for (p, disc) in points.iter().zip(&discs) {
        let (cx, cy, w) = (disc[0] + 7.0, disc[1] + 7.0, font::width(&p.label, LABEL));
        let tip = format!("{}: {}, {} nats per token", p.label, bytes(p.bytes), nats(p.kld));
        f.marks.push(Mark::Disc { at: (cx, cy), radius: 6.0, ink: Ink::Series(p.series), tip });
        let places = [
            (Anchor::Start, cx + 10.0, cy + 4.5, cx + 10.0),
            (Anchor::End, cx - 10.0, cy + 4.5, cx - 10.0 - w),
            (Anchor::Middle, cx, cy - 11.0, cx - w / 2.0),
            (Anchor::Middle, cx, cy + 20.0, cx - w / 2.0),
            (Anchor::Start, cx + 6.0, cy - 14.0, cx + 6.0),
            (Anchor::Start, cx + 6.0, cy + 23.0, cx + 6.0),
        ];
        let area = |(_, _, base, from): &(Anchor, f64, f64, f64)| [*from, base - 11.0, w, 14.0];
        let free = |place: &&(Anchor, f64, f64, f64)| {
            let a = area(place);
            let inside = a[0] >= left && a[0] + w <= width - 4.0 && a[1] >= 22.0 && a[1] + 14.0 <= height - bottom;
            inside && !taken.iter().chain(&discs).any(|b| overlap(a, *b) && *b != *disc)
        };
        let place = places.iter().find(free).unwrap_or(&places[0]);
        taken.push(area(place));
        f.text((place.1, place.2), place.0, LABEL, Ink::Text, p.label.as_str());
    }
    let names: Vec<&str> = best.iter().map(|p| p.label.as_str()).collect();
    f.description = format!(
        "{} artifacts by size and mean KL divergence, both on logarithmic axes. None is both smaller and closer to the source than: {}.",
        points.len(),
        names.join(", ")
    );
    Some(f)
}

fn overlap(a: [f64; 4], b: [f64; 4]) -> bool {
    a[0] < b[0] + b[2] && b[0] < a[0] + a[2] && a[1] < b[1] + b[3] && b[1] < a[1] + a[3]
}

/// A size without needless digits.
fn short_bytes(n: f64) -> String {
    let text = bytes(n.round() as u64);
    match text.split_once(' ') {
        Some((number, unit)) if number.contains('.') => {
            format!("{} {unit}", number.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

/// One bar: value, its standard error, and what stands beside it.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// The value.
    pub value: f64,
    /// Its standard error.
    pub stderr: f64,
    /// What stands beside the bar.
    pub note: String,
}

/// Horizontal bars in groups: what is measured, the names of the series with the numbers of their colours, and groups of a name and a
/// bar per series. A line at `mark`, if there is one, divides better from worse.
pub fn bars(
    title: &str,
    series: &[(String, usize)],
    groups: &[(String, Vec<Option<Bar>>)],
    mark: Option<(f64, &str)>,
) -> Option<Figure> {
    let all = || groups.iter().flat_map(|g| g.1.iter().flatten());
    let most = all().map(|b| b.value + b.stderr).chain(mark.map(|m| m.0)).fold(0.0, f64::max);
    if !(most > 0.0 && most.is_finite()) {
        return None;
    }
    let left = 12.0 + groups.iter().map(|g| font::width(&g.0, LABEL)).fold(60.0, f64::max);
    let right = 16.0 + all().map(|b| font::width(&b.note, SMALL)).fold(0.0, f64::max);
    let (width, thick, gap) = (760.0, 15.0, 12.0);
    let legend = if series.len() > 1 { 26.0 } else { 0.0 };
    let top = 14.0 + legend + if mark.is_some() { 16.0 } else { 0.0 };
    let rows: usize = groups.iter().map(|g| g.1.len()).sum();
    let height = top + rows as f64 * thick + groups.len() as f64 * gap + 4.0;
    let mut f = Figure::new(width, height, title);
    let scale = (width - left - right) / most;
    let mut x = left;
    for (name, color) in series.iter().filter(|_| series.len() > 1) {
        f.marks.push(Mark::Rect { at: [x, 8.0, 12.0, 12.0], ink: Ink::Series(*color), tip: String::new() });
        f.text((x + 17.0, 18.5), Anchor::Start, SMALL, Ink::Text, name.as_str());
        x += 34.0 + font::width(name, SMALL);
    }
    let mut y = top;
    for (name, values) in groups {
        f.text((left - 8.0, y + values.len() as f64 * thick / 2.0 + 4.5), Anchor::End, LABEL, Ink::Text, name.as_str());
        for (bar, (series, color)) in values.iter().zip(series) {
            if let Some(bar) = bar {
                let length = (bar.value * scale).max(1.0);
                let tip = format!("{series}, {name}: {}", bar.note);
                f.marks.push(Mark::Rect { at: [left, y, length, thick - 2.0], ink: Ink::Series(*color), tip });
                if bar.stderr > 0.0 {
                    let (from, to) = ((bar.value - bar.stderr).max(0.0), bar.value + bar.stderr);
                    let middle = y + thick / 2.0 - 1.0;
                    f.line((left + from * scale, middle), (left + to * scale, middle), Ink::Text, 1.5);
                }
                let end = left + (bar.value + bar.stderr) * scale;
                f.text((end + 7.0, y + 11.0), Anchor::Start, SMALL, Ink::Dim, bar.note.as_str());
            }
            y += thick;
        }
        y += gap;
    }
    f.line((left, top - 4.0), (left, y - gap + 2.0), Ink::Dim, 1.0);
    if let Some((value, name)) = mark {
        let x = left + value * scale;
        f.marks.push(Mark::Line { points: vec![(x, top - 6.0), (x, y - gap + 2.0)], ink: Ink::Text, width: 1.0, dashed: true });
        f.text((x, top - 9.0), Anchor::Middle, SMALL, Ink::Dim, name);
    }
    let worst = groups.iter().filter_map(|(name, bars)| {
        let value = bars.iter().flatten().map(|b| b.value).fold(f64::NEG_INFINITY, f64::max);
        value.is_finite().then_some((name, value))
    });
    if let Some((name, _)) = worst.max_by(|a, b| a.1.total_cmp(&b.1)) {
        f.description = format!("Bars for {} groups; the highest is {name}.", groups.len());
    }
    Some(f)
}

/// Divergence that each tensor's quantization alone adds, layers across and parts down, the shade by its logarithm. `domain` picks one
/// domain; without it, the mean of all.
pub fn heatmap(map: &QualityMap, codec: &str, domain: Option<&str>) -> Option<Figure> {
    let grid = crate::report::heat::Grid::of(map, codec, domain)?;
    let left = 16.0 + grid.parts.iter().map(|p| font::width(p, LABEL)).fold(0.0, f64::max);
    let cell = (720.0 / grid.layers.len() as f64).clamp(18.0, 64.0);
    let (high, top) = (24.0, 52.0);
    let width = (left + cell * grid.layers.len() as f64 + 16.0).max(420.0);
    let mut f = Figure::new(width, top + high * grid.parts.len() as f64 + 44.0, format!("Divergence by layer and role, {codec}"));
    f.text(
        (12.0, 20.0),
        Anchor::Start,
        LABEL,
        Ink::Text,
        format!("{codec}: KL divergence added by each tensor alone, {}", domain.unwrap_or("all domains")),
    );
    let every = grid.layers.len().div_ceil(32).max(if cell < 24.0 { 2 } else { 1 });
    for (l, layer) in grid.layers.iter().enumerate().filter(|(l, _)| l % every == 0) {
        let name = layer.map_or("–".to_string(), |l| l.to_string());
        f.text((left + cell * (l as f64 + 0.5), top - 8.0), Anchor::Middle, SMALL, Ink::Dim, name);
    }
    for (p, part) in grid.parts.iter().enumerate() {
        let y = top + high * p as f64;
        f.text((left - 8.0, y + 16.5), Anchor::End, LABEL, Ink::Text, part.as_str());
        for (l, layer) in grid.layers.iter().enumerate() {
            let Some(value) = grid.values[p][l] else { continue };
            let place = layer.map_or(String::new(), |l| format!(" of layer {l}"));
            let tip = format!("{part}{place}: {} nats per token", nats(value));
            f.marks.push(Mark::Rect {
                at: [left + cell * l as f64 + 0.5, y + 0.5, cell - 1.0, high - 1.0],
                ink: Ink::Heat(grid.heat(value)),
                tip,
            });
        }
    }
    let y = top + high * grid.parts.len() as f64 + 18.0;
    for i in 0..40 {
        let at = [left + 4.0 * f64::from(i), y, 4.0, 10.0];
        f.marks.push(Mark::Rect { at, ink: Ink::Heat(f64::from(i) / 39.0), tip: String::new() });
    }
    f.text((left - 8.0, y + 10.0), Anchor::End, SMALL, Ink::Dim, nats(grid.low));
    f.text((left + 168.0, y + 10.0), Anchor::Start, SMALL, Ink::Dim, format!("{} nats per token", nats(grid.high)));
    f.description = grid.describe();
    Some(f)
}

/// The relative error of hidden states after each layer when everything is quantized, one line per codec.
pub fn depth(map: &QualityMap) -> Option<Figure> {
    let curves: Vec<(&str, Vec<f64>)> = map
        .depth
        .iter()
        .map(|d| (d.codec.as_str(), std::iter::once(d.embedding).chain(d.layers.iter().copied()).collect()))
        .collect();
    let steps = curves.iter().map(|c| c.1.len()).max().filter(|n| *n > 1)?;
    let positive = || curves.iter().flat_map(|c| c.1.iter().copied()).filter(|v| *v > 0.0 && v.is_finite());
    positive().next()?;
    let (width, height, left, bottom) = (760.0, 320.0, 74.0, 48.0);
    let right = 20.0 + curves.iter().map(|c| font::width(c.0, SMALL)).fold(0.0, f64::max);
    let mut f = Figure::new(width, height, "Error by depth");
    let y = Axis::over(positive(), height - bottom, 30.0);
    let x = |step: usize| left + 12.0 + (width - left - right - 12.0) * step as f64 / (steps - 1) as f64;
    for tick in y.ticks(1.0) {
        f.line((left, y.at(tick)), (width - right, y.at(tick)), Ink::Grid, 1.0);
        f.text((left - 8.0, y.at(tick) + 4.0), Anchor::End, SMALL, Ink::Dim, percent(tick));
    }
    let every = steps.div_ceil(17);
    for step in (0..steps).step_by(every) {
        let name = if step == 0 { "embedding".to_string() } else { (step - 1).to_string() };
        f.text((x(step), height - bottom + 18.0), Anchor::Middle, SMALL, Ink::Dim, name);
    }
    f.text((left, 18.0), Anchor::Start, LABEL, Ink::Text, "error of the hidden states, relative to their size");
    f.text((width - right, height - 10.0), Anchor::End, LABEL, Ink::Text, "after layer");
    let mut ends: Vec<f64> = Vec::new();
    for (i, (codec, values)) in curves.iter().enumerate() {
        let points: Vec<(f64, f64)> =
            values.iter().enumerate().filter(|(_, v)| **v > 0.0 && v.is_finite()).map(|(s, v)| (x(s), y.at(*v))).collect();
        let Some(last) = points.last().copied() else { continue };
        f.marks.push(Mark::Line { points, ink: Ink::Series(i), width: 2.0, dashed: false });
        let mut at = last.1;
        while let Some(taken) = ends.iter().find(|e| (**e - at).abs() < 14.0) {
            at = taken + 14.0;
        }
        ends.push(at);
        f.text((last.0 + 8.0, at + 4.0), Anchor::Start, SMALL, Ink::Series(i), *codec);
    }
    let last = |c: &(&str, Vec<f64>)| format!("{} ends at {}", c.0, percent(*c.1.last().unwrap_or(&0.0)));
    f.description = format!("Lines by layer: {}.", curves.iter().map(last).collect::<Vec<_>>().join(", "));
    Some(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(label: &str, bytes: u64, kld: f64) -> Point {
        Point { label: label.into(), bytes, kld, series: 0 }
    }

    #[test]
    fn the_front_is_what_no_other_beats() {
        let points =
            [point("a", 100, 0.1), point("b", 120, 0.2), point("c", 150, 0.05), point("d", 150, 0.06), point("e", 200, 0.01)];
        assert_eq!(front(&points).iter().map(|p| p.label.as_str()).collect::<Vec<_>>(), ["a", "c", "e"]);
    }

    #[test]
    fn labels_do_not_hide_each_other() {
        let points: Vec<Point> =
            (0..6).map(|i| point(&format!("gguf:q{i}_k_m"), (100 + i) << 20, 0.01 + 0.0004 * i as f64)).collect();
        let f = pareto(&points).unwrap();
        let areas: Vec<[f64; 4]> = f
            .marks
            .iter()
            .filter_map(|m| match m {
                Mark::Text { at, anchor, size, text, .. } if text.starts_with("gguf") => {
                    let w = font::width(text, *size);
                    let back = if *anchor == Anchor::End {
                        w
                    } else if *anchor == Anchor::Middle {
                        w / 2.0
                    } else {
                        0.0
                    };
                    Some([at.0 - back, at.1 - 9.0, w, 10.0])
                }
                _ => None,
            })
            .collect();
        assert_eq!(areas.len(), 6);
        for (i, a) in areas.iter().enumerate() {
            assert!(areas[..i].iter().all(|b| !overlap(*a, *b)), "{i}");
            assert!(a[0] >= 0.0 && a[0] + a[2] <= f.width);
        }
        assert!(pareto(&points[..1]).is_none());
    }

    #[test]
    fn axes_have_round_ticks() {
        let axis = Axis::over([0.001, 0.5].into_iter(), 0.0, 100.0);
        assert_eq!(axis.ticks(1.0).len(), 3);
        assert!((axis.at(0.001) - axis.at(0.5)).abs() > 60.0);
        let narrow = Axis::over([1.0, 1.4].into_iter(), 0.0, 100.0);
        assert!(narrow.ticks(1.0).len() >= 3);
    }

    #[test]
    fn bars_stay_inside() {
        let bar = |value: f64| Some(Bar { value, stderr: 0.1 * value, note: "0.01 (+1 %)".into() });
        let series = [("q4".to_string(), 0), ("q8".to_string(), 1)];
        let groups = [("prose".to_string(), vec![bar(0.1), bar(0.01)]), ("code".to_string(), vec![bar(0.3), None])];
        let f = bars("By domain", &series, &groups, Some((0.15, "mean"))).unwrap();
        for mark in &f.marks {
            match mark {
                Mark::Rect { at, .. } => assert!(at[0] + at[2] <= f.width && at[1] + at[3] <= f.height),
                Mark::Text { at, anchor: Anchor::Start, size, text, .. } => assert!(at.0 + font::width(text, *size) <= f.width),
                _ => {}
            }
        }
        assert!(f.description.ends_with("code."));
    }
}
