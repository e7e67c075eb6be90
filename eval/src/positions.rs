//! What was found position by position, in a file, so that parts of a text can be measured apart and judged together.

use crate::metrics::Position;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use std::path::Path;

/// Bytes of a position: four f64, two token ids, and whether both models agree.
const BYTES: usize = 41;
/// Most bytes that a file may unpack to.
const LIMIT: u64 = 1 << 34;

/// Writes the positions of windows that have `scored` each: a zstd stream with a checksum.
pub fn write(path: &Path, windows: &[Vec<Position>]) -> Result<()> {
    let mut bytes = Vec::with_capacity(windows.iter().map(Vec::len).sum::<usize>() * BYTES);
    for p in windows.iter().flatten() {
        [p.nll_against, p.nll, p.kld, p.confidence].iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        [p.top_against, p.top].iter().for_each(|id| bytes.extend(id.to_le_bytes()));
        bytes.push(u8::from(p.same_top));
    }
    let packed = || -> std::io::Result<Vec<u8>> {
        let mut packer = zstd::stream::Encoder::new(Vec::new(), 3)?;
        packer.include_checksum(true)?;
        std::io::Write::write_all(&mut packer, &bytes)?;
        packer.finish()
    };
    write_file(path, &packed().map_err(|e| Error::failed(e.to_string()))?)
}

/// Reads them back.
pub fn read(path: &Path, scored: usize) -> Result<Vec<Vec<Position>>> {
    let damaged = || Error::corrupt("these are no measured positions of this text").file(path);
    let packed = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    let mut bytes = Vec::new();
    let stream = zstd::stream::Decoder::new(packed.as_slice()).map_err(|_| damaged())?;
    std::io::Read::read_to_end(&mut std::io::Read::take(stream, LIMIT), &mut bytes).map_err(|_| damaged())?;
    let (positions, []) = bytes.as_chunks::<BYTES>() else { return Err(damaged()) };
    if scored == 0 || !positions.len().is_multiple_of(scored) {
        return Err(damaged());
    }
    let position = |b: &[u8; BYTES]| {
        let (numbers, rest) = b.split_at(32);
        let number = |i: usize| numbers.as_chunks::<8>().0.get(i).map_or(0.0, |v| f64::from_le_bytes(*v));
        let id = |i: usize| rest.as_chunks::<4>().0.get(i).map_or(0, |v| u32::from_le_bytes(*v));
        Position {
            nll_against: number(0),
            nll: number(1),
            kld: number(2),
            confidence: number(3),
            top_against: id(0),
            top: id(1),
            same_top: rest[8] != 0,
        }
    };
    let positions: Vec<Position> = positions.iter().map(position).collect();
    Ok(positions.chunks(scored).map(<[Position]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let of = |i: u32| Position {
            nll_against: 0.1 + f64::from(i),
            nll: 0.2,
            kld: f64::MIN_POSITIVE * f64::from(i),
            same_top: i.is_multiple_of(2),
            top_against: i,
            top: u32::MAX - i,
            confidence: 1.0 / f64::from(i + 3),
        };
        let windows: Vec<Vec<Position>> = (0..3).map(|w| (0..4).map(|i| of(4 * w + i)).collect()).collect();
        write(&path, &windows).unwrap();
        assert_eq!(read(&path, 4).unwrap(), windows);
        assert!(read(&path, 5).is_err());
        write(&path, &[]).unwrap();
        assert!(read(&path, 4).unwrap().is_empty());
        std::fs::write(&path, "none").unwrap();
        assert!(read(&path, 4).is_err());
    }
}
