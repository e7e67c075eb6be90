//! Statistics on disk: one zstd stream holding a JSON header and the arrays, little-endian, lower triangles only.

use crate::stats::{MatrixStats, SiteStats, Stats, StatsMeta};
use bitsmith_formats::atomic::AtomicFile;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::role::Site;
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"bsstats1";
/// No header of a real model comes near this; a damaged length must not make us allocate.
const MAX_HEADER: u64 = 64 << 20;
/// Widest linear input that we accept from a file, in channels.
const MAX_WIDTH: usize = 1 << 20;

/// What a file may unpack to: so many times its own size, which sums of activations never reach, or a little at any rate.
const MAX_RATIO: u64 = 200;
const MIN_UNPACKED: u64 = 16 << 20;

#[derive(Serialize, Deserialize)]
struct Header {
    meta: StatsMeta,
    sites: Vec<SiteHeader>,
}

#[derive(Serialize, Deserialize)]
struct SiteHeader {
    site: Site,
    width: usize,
    tokens: u64,
    gram: bool,
    /// Whether sums of the inputs themselves follow those of their squares.
    #[serde(default)]
    means: bool,
    /// Tokens that each of several stacked matrices saw.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    matrices: Vec<u64>,
}

impl Stats {
    /// Writes the statistics, atomically.
    pub fn save(&self, path: &Path) -> Result<()> {
        let io = |e| Error::write(path, e);
        let mut file = AtomicFile::create(path)?;
        {
            let mut z = zstd::Encoder::new(BufWriter::new(&mut file), 3).map_err(io)?;
            // A flipped bit shall not become a wrong statistic.
            z.include_checksum(true).map_err(io)?;
            let sites = self.sites.iter();
            let sites = sites.map(|(&site, s)| SiteHeader {
                site,
                width: s.width(),
                tokens: s.tokens,
                gram: s.gram.is_some(),
                means: s.mean().is_some(),
                matrices: s.matrices.iter().map(|m| m.tokens).collect(),
            });
            let header = Header { meta: self.meta.clone(), sites: sites.collect() };
            let header = serde_json::to_vec(&header).map_err(|e| Error::failed(e.to_string()))?;
            z.write_all(MAGIC).map_err(io)?;
            z.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
            z.write_all(&header).map_err(io)?;
            for s in self.sites.values() {
                write_site(&mut z, s).map_err(io)?;
            }
            z.finish().map_err(io)?.flush().map_err(io)?;
        }
        file.commit()
    }

    /// Reads statistics back.
    pub fn load(path: &Path) -> Result<Stats> {
        // The decoder reports damage as it reports failures of the disk, which are rarer.
        let read = |e: std::io::Error| {
            Error::corrupt(e.to_string())
                .file(path)
                .hint("the statistics file is damaged or not one: run `bitsmith calibrate` again")
        };
        let file = File::open(path).map_err(|e| Error::read(path, e))?;
        let most = file.metadata().map_err(|e| Error::read(path, e))?.len().saturating_mul(MAX_RATIO).max(MIN_UNPACKED);
        let mut z = zstd::Decoder::new(BufReader::new(file)).map_err(read)?.take(most);
        let mut head = [0u8; 16];
        z.read_exact(&mut head).map_err(read)?;
        let len = u64::from_le_bytes(head[8..].try_into().expect("eight bytes"));
        if &head[..8] != MAGIC || len > MAX_HEADER {
            return Err(Error::corrupt("not a bitsmith statistics file").file(path));
        }
        let mut json = Vec::new();
        z.by_ref().take(len).read_to_end(&mut json).map_err(read)?;
        let header: Header = serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("bad header: {e}")).file(path))?;
        let mut stats = Stats { meta: header.meta, ..Stats::default() };
        for h in header.sites {
            if h.width > MAX_WIDTH {
                return Err(Error::corrupt(format!("{} claims {} channels", h.site, h.width)).file(path));
            }
            let site = read_site(&mut z, &h).map_err(read)?;
            check_values(&site).map_err(|e| e.file(path).tensor(h.site.to_string()))?;
            stats.sites.insert(h.site, site);
        }
        // The checksum comes after the last byte.
        if z.read(&mut [0]).map_err(read)? != 0 {
            return Err(Error::corrupt("more follows its end").file(path));
        }
        Ok(stats)
    }
}

/// Sums of squares and of magnitudes are numbers, and none is below zero.
fn check_values(site: &SiteStats) -> Result<()> {
    let matrices = site.matrices.iter().flat_map(|m| &m.sum_sq);
    let bad = site.sum_sq.iter().chain(&site.sum_abs).chain(matrices).copied().find(|v| !(v.is_finite() && *v >= 0.0));
    let bad = bad.or_else(|| site.sum.iter().copied().find(|v| !v.is_finite()));
    let other = || site.max_abs.iter().chain(site.gram.iter().flatten()).find(|v| !v.is_finite()).map(|v| f64::from(*v));
    match bad.or_else(other) {
        None => Ok(()),
        Some(value) => Err(Error::corrupt(format!("its statistics have the value {value}"))
            .hint("the model's activations are not finite, or the file is damaged: run `bitsmith calibrate` again")),
    }
}

fn write_site(out: &mut impl Write, s: &SiteStats) -> std::io::Result<()> {
    for v in s.sum_sq.iter().chain(&s.sum).chain(&s.sum_abs) {
        out.write_all(&v.to_le_bytes())?;
    }
    for v in &s.max_abs {
        out.write_all(&v.to_le_bytes())?;
    }
    if let Some(gram) = &s.gram {
        for (i, row) in gram.rows().into_iter().enumerate() {
            for v in row.iter().take(i + 1) {
                out.write_all(&v.to_le_bytes())?;
            }
        }
    }
    for v in s.matrices.iter().flat_map(|m| m.sum_sq.iter().chain(&m.sum)) {
        out.write_all(&v.to_le_bytes())?;
    }
    Ok(())
}

fn read_site(input: &mut impl Read, h: &SiteHeader) -> std::io::Result<SiteStats> {
    let means = if h.means { h.width } else { 0 };
    let (sum_sq, sum, sum_abs) = (read_f64s(input, h.width)?, read_f64s(input, means)?, read_f64s(input, h.width)?);
    let max_abs = read_f32s(input, h.width)?;
    let gram = if h.gram {
        // Row by row, so that a false width in the header fails at the end of the data and not in the allocator.
        let triangle = (0..h.width).map(|i| read_f32s(input, i + 1)).collect::<std::io::Result<Vec<_>>>()?;
        let mut gram = Array2::zeros((h.width, h.width));
        for (i, row) in triangle.into_iter().enumerate() {
            gram.row_mut(i).iter_mut().zip(row).for_each(|(to, from)| *to = from);
        }
        Some(gram)
    } else {
        None
    };
    let mut matrices = Vec::new();
    for &tokens in &h.matrices {
        let (squares, means) = if tokens > 0 { (h.width, means) } else { (0, 0) };
        matrices.push(MatrixStats { tokens, sum_sq: read_f64s(input, squares)?, sum: read_f64s(input, means)? });
    }
    Ok(SiteStats { tokens: h.tokens, gram, sum_sq, sum, sum_abs, max_abs, matrices, own_grams: Vec::new() })
}

fn read_f64s(input: &mut impl Read, n: usize) -> std::io::Result<Vec<f64>> {
    let mut bytes = vec![0u8; n * 8];
    input.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes"))).collect())
}

fn read_f32s(input: &mut impl Read, n: usize) -> std::io::Result<Vec<f32>> {
    let mut bytes = vec![0u8; n * 4];
    input.read_exact(&mut bytes)?;
    Ok(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::role::Input;
    use ndarray::Array2;

    fn example() -> Stats {
        let x = Array2::from_shape_fn((12, 5), |(t, c)| (t as f32 - 4.0) * (c as f32 + 0.5));
        let mut stats = Stats { meta: StatsMeta { model: "m".into(), samples: 3, ..StatsMeta::default() }, ..Stats::default() };
        for (layer, gram) in [(0, true), (1, false)] {
            let mut s = SiteStats::new(5, gram);
            s.add(x.view());
            s.add_matrix(1, 3, x.view());
            stats.sites.insert(Site { layer: Some(layer), input: Input::FfnIn }, s);
        }
        stats
    }

    #[test]
    fn saving_and_loading_keeps_everything() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.stats");
        let stats = example();
        stats.save(&path).unwrap();
        let back = Stats::load(&path).unwrap();
        assert_eq!(back.meta, stats.meta);
        for (a, b) in back.sites.values().zip(stats.sites.values()) {
            assert_eq!((a.hessian(), &a.matrices), (b.hessian(), &b.matrices));
            assert_eq!((&a.sum_sq, &a.sum_abs, &a.max_abs, a.tokens), (&b.sum_sq, &b.sum_abs, &b.max_abs, b.tokens));
            assert_eq!(a.sum, b.sum);
        }
    }

    #[test]
    fn damaged_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.stats");
        example().save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in [0, 3, 20, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let e = Stats::load(&path).unwrap_err();
            assert_eq!(e.kind, bitsmith_formats::ErrorKind::Corrupt, "cut at {cut}: {e}");
            assert!(e.to_string().contains("x.stats"));
        }
    }
}
