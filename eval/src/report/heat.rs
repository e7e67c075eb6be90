//! The quality map as layers × roles.

use super::format::nats;
use crate::map::{MapEntry, QualityMap};
use std::fmt::Write;

/// Values below the worst by this factor are as good as nothing.
const RANGE: f64 = 1e3;

/// The values of one codec.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// The roles.
    pub parts: Vec<String>,
    /// The layers; `None` for tensors outside all layers.
    pub layers: Vec<Option<usize>>,
    /// Nats per token, by role and layer.
    pub values: Vec<Vec<Option<f64>>>,
    /// What the coldest shade stands for, over all codecs and domains of the map.
    pub low: f64,
    /// What the hottest shade stands for.
    pub high: f64,
}

/// What quantizing a tensor alone costs on a domain, or on all: measured if it was, else estimated.
fn value(entry: &MapEntry, domain: Option<&str>) -> Option<f64> {
    match domain {
        None => entry.kld().or(entry.estimate),
        Some(d) => entry.measured.iter().find(|m| m.domain == d).map(|m| m.kld),
    }
}

impl Grid {
    /// The values of a codec; nothing if the map has none.
    pub fn of(map: &QualityMap, codec: &str, domain: Option<&str>) -> Option<Grid> {
        let (mut parts, mut layers): (Vec<String>, Vec<Option<usize>>) = (Vec::new(), Vec::new());
        for e in &map.entries {
            if !parts.contains(&e.part) {
                parts.push(e.part.clone());
            }
            if !layers.contains(&e.layer) {
                layers.push(e.layer);
            }
        }
        layers.sort();
        let mut values = vec![vec![None; layers.len()]; parts.len()];
        for e in map.entries.iter().filter(|e| e.codec == codec) {
            let place = parts.iter().position(|p| *p == e.part).zip(layers.iter().position(|l| *l == e.layer));
            if let Some((p, l)) = place {
                values[p][l] = value(e, domain);
            }
        }
        let measured = |e: &MapEntry| e.measured.iter().map(|m| m.kld).collect::<Vec<f64>>();
        let all: Vec<f64> = map.entries.iter().flat_map(|e| measured(e).into_iter().chain(value(e, None))).collect();
        let high = all.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::max);
        let low = all.iter().copied().filter(|v| *v > 0.0).fold(high, f64::min).max(high / RANGE);
        let any = values.iter().flatten().any(Option::is_some);
        (any && high > 0.0).then_some(Grid { parts, layers, values, low, high })
    }

    /// How hot a value is: 0 to 1, by its logarithm.
    pub fn heat(&self, value: f64) -> f64 {
        if self.high <= self.low {
            return f64::from(u8::from(value > 0.0));
        }
        ((value / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0)
    }

    /// The worst tensors in words.
    pub fn describe(&self) -> String {
        let mut all: Vec<(f64, String)> = Vec::new();
        for (part, row) in self.parts.iter().zip(&self.values) {
            for (layer, value) in self.layers.iter().zip(row) {
                let name = layer.map_or_else(|| part.clone(), |l| format!("{part} of layer {l}"));
                all.extend(value.map(|v| (v, name)));
            }
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let worst: Vec<String> = all.iter().take(3).map(|(v, name)| format!("{name} ({})", nats(*v))).collect();
        format!("Most is lost by {}.", worst.join(", "))
    }

    /// For the terminal: a shade per tensor, two characters wide where there is room.
    fn to_text(&self) -> String {
        const SHADES: [char; 6] = ['·', '-', '░', '▒', '▓', '█'];
        let wide = if self.layers.len() <= 40 { 2 } else { 1 };
        let name = self.parts.iter().map(|p| p.chars().count()).max().unwrap_or(0);
        let mut out = String::new();
        let mut ruler = " ".repeat(name + 2);
        for (l, layer) in self.layers.iter().enumerate() {
            let at = name + 2 + l * wide;
            if let Some(layer) = layer.filter(|l| l % 5 == 0) {
                ruler += &" ".repeat(at.saturating_sub(ruler.chars().count()));
                ruler += &layer.to_string();
            }
        }
        let _ = writeln!(out, "{}", ruler.trim_end());
        for (part, row) in self.parts.iter().zip(&self.values) {
            let shade = |v: &Option<f64>| v.map_or(' ', |v| SHADES[(self.heat(v) * 5.0).round() as usize]);
            let cells: String = row.iter().map(|v| shade(v).to_string().repeat(wide)).collect();
            let _ = writeln!(out, "{part}{}  {}", " ".repeat(name - part.chars().count()), cells.trim_end());
        }
        out
    }
}

/// The map for the terminal: a heatmap per codec, and what its shades mean.
pub fn to_text(map: &QualityMap) -> String {
    let mut out = String::new();
    for codec in &map.codecs {
        let Some(grid) = Grid::of(map, codec, None) else { continue };
        let _ = write!(out, "{codec}: layers across\n{}{}\n\n", grid.to_text(), grid.describe());
        if Some(codec) == map.codecs.last() {
            let _ = writeln!(out, "· is {} nats per token or less, █ is {}.", nats(grid.low), nats(grid.high));
        }
    }
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::map::{Depth, MapData, Measured};

    /// A map of `n` layers whose value tensor of layer 1 is by far the worst.
    pub(crate) fn map(layers: usize) -> QualityMap {
        let mut entries = Vec::new();
        for (c, codec) in ["Q4_K", "Q2_K"].iter().enumerate() {
            let tensors = (0..layers).flat_map(|l| ["attn_q", "attn_v", "ffn_down"].map(|p| (Some(l), p)));
            for (i, (layer, part)) in std::iter::once((None, "token_embd")).chain(tensors).enumerate() {
                let worst = layer == Some(1) && part == "attn_v";
                let kld = if worst { 0.5 } else { 0.001 * (1.0 + i as f64) } * (1.0 + 9.0 * c as f64);
                let role = layer.map_or(part.to_string(), |l| format!("blk.{l}.{part}"));
                let at =
                    |domain: &str, by: f64| Measured { domain: domain.into(), kld: kld * by, stderr: 1e-5, ppl_ratio: 1.0 + kld };
                entries.push(MapEntry {
                    role,
                    part: part.into(),
                    layer,
                    codec: codec.to_string(),
                    instead: None,
                    bytes: 1000,
                    bpw: 4.5,
                    error: 0.01,
                    estimate: Some(kld),
                    measured: vec![at("prose", 0.5), at("code", 1.5)],
                });
            }
        }
        let data = |d: &str| MapData { data: "builtin".into(), domain: d.into(), tokens: 100, windows: 2 };
        let depth = |codec: &str, by: f64| Depth {
            codec: codec.into(),
            embedding: 0.01 * by,
            layers: (0..layers).map(|l| 0.02 * by * (1.0 + l as f64)).collect(),
        };
        QualityMap {
            model: "m".into(),
            data: vec![data("prose"), data("code")],
            codecs: vec!["Q4_K".into(), "Q2_K".into()],
            entries,
            depth: vec![depth("Q4_K", 1.0), depth("Q2_K", 10.0)],
            ..QualityMap::default()
        }
    }

    #[test]
    fn the_worst_is_the_hottest() {
        let map = map(4);
        let grid = Grid::of(&map, "Q4_K", None).unwrap();
        assert_eq!(grid.layers, [None, Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(grid.parts, ["token_embd", "attn_q", "attn_v", "ffn_down"]);
        assert!(grid.describe().starts_with("Most is lost by attn_v of layer 1 (0.5)"), "{}", grid.describe());
        assert_eq!(grid.values[0][1], None);
        // Shades are common to all codecs and domains: the worst is Q2_K's on code.
        assert!((grid.high - 7.5).abs() < 1e-9);
        let worst = Grid::of(&map, "Q2_K", Some("code")).unwrap();
        assert_eq!(worst.heat(worst.values[2][2].unwrap()), 1.0);
        assert!(grid.heat(0.5) < 1.0 && grid.heat(0.0) == 0.0);
        assert!(Grid::of(&map, "Q8_0", None).is_none());
    }

    #[test]
    fn text_lines_up() {
        let text = to_text(&map(12));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Q4_K: layers across");
        let column = |line: &str, what: char| line.chars().position(|c| c == what);
        assert_eq!(column(lines[1], '5').unwrap(), "token_embd".len() + 2 + 2 * 6);
        assert!(lines[4].starts_with("attn_v") && text.contains("█"), "{text}");
    }
}
