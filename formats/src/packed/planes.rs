//! What the layouts have in common: checked planes, scales that belong to tiles of a matrix, and blocks put together from planes.

use super::{Weight, dtype};
use crate::codec::{CodecId, Float};
use crate::codecs;
use crate::container::{Encoding, TensorInfo, TensorStore};
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsStore;
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Blocks that a thread puts together at a time.
const BLOCKS_PER_TASK: usize = 4096;

/// Planes of a module that say how activations are quantized. The runtime keeps activations in floating point, so they are left out.
const ACTIVATION_PLANES: [&str; 7] = [
    "input_scale",
    "input_global_scale",
    "input_zero_point",
    "input_observer_scale",
    "output_scale",
    "output_zero_point",
    "weight_observer_scale",
];
/// The same for the key-value cache, beside the projections of an attention block.
const CACHE_PLANES: [&str; 5] = ["k_scale", "v_scale", "q_scale", "k_zero_point", "v_zero_point"];

/// An error about a tensor of the store.
pub(super) fn at(store: &SafetensorsStore, name: &str, error: Error) -> Error {
    error.file(store.file_of(name)).tensor(name)
}

/// Holds a plane's type and shape against what the layout says.
pub(super) fn check(store: &SafetensorsStore, info: &TensorInfo, dtypes: &[&str], shape: &[usize]) -> Result<()> {
    let found = dtype(info);
    if dtypes.contains(&found.as_str()) && info.shape == shape {
        return Ok(());
    }
    let message = format!("is {found} of shape {:?}, but should be {} of {shape:?}", info.shape, dtypes.join(" or "));
    Err(at(store, &info.name, mismatch(message)))
}

/// Planes and configuration that contradict each other.
pub(super) fn mismatch(message: impl Into<String>) -> Error {
    Error::corrupt(message).hint("the weights and `quantization_config` do not belong together, or the checkpoint is damaged")
}

/// The codec where there is one with these parameters and rows are whole blocks of it; decoded values otherwise.
pub(super) fn encoding(codec: CodecId, whole: bool) -> Encoding {
    match codecs::find(codec).filter(|_| whole) {
        Some(_) => Encoding::Codec(codec),
        None => Encoding::Decoded(codec.to_string()),
    }
}

/// A weight whose planes are `planes`, the first of which it replaces, and the planes of `module` that concern activations.
pub(super) fn weight(
    store: &SafetensorsStore,
    module: &str,
    name: String,
    shape: Vec<usize>,
    encoding: Encoding,
    planes: &[&TensorInfo],
) -> Weight {
    let mut names: Vec<String> = planes.iter().map(|p| p.name.clone()).collect();
    let attention = module.rsplit_once('.').map(|(parent, _)| parent).filter(|_| module.ends_with("_proj"));
    let beside = ACTIVATION_PLANES.iter().map(|p| format!("{module}.{p}"));
    let cache =
        [Some(module), attention].into_iter().flatten().flat_map(|m| CACHE_PLANES.iter().map(move |p| format!("{m}.{p}")));
    names.extend(beside.chain(cache).filter(|name| store.find(name).is_some()));
    let n_bytes = planes.iter().map(|p| p.n_bytes).sum();
    Weight { info: TensorInfo::new(name, shape, encoding, n_bytes), planes: names }
}

/// The plane of a weight with this number. Layouts that made a weight know its planes.
pub(super) fn nth<'a>(store: &'a SafetensorsStore, weight: &Weight, n: usize) -> Result<&'a TensorInfo> {
    let name = weight.planes.get(n).map_or("", String::as_str);
    store.find(name).ok_or_else(|| Error::missing("a plane of this weight is missing").tensor(name))
}

/// Which scale belongs to which weight: one per tile of `rows × cols` in each of the matrices that a tensor consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Rows of one matrix.
    height: usize,
    /// Rows of a tile.
    rows: usize,
    /// Columns of a tile.
    pub cols: usize,
    /// Tiles of a matrix, down and across.
    grid: [usize; 2],
}

impl Tiles {
    /// For scales of shape `scales` beside weights of shape `shape` (outermost first, at least two dimensions). `tile` is what the
    /// configuration says; without it, tiles divide each dimension evenly. A missing last dimension means a scale per row.
    pub fn new(shape: &[usize], scales: &[usize], tile: Option<[usize; 2]>) -> Option<Self> {
        let [outer @ .., height, width] = shape else { return None };
        if [*height, *width].contains(&0) {
            return None;
        }
        let one = vec![1; shape.len()];
        let scales: Cow<[usize]> = match scales {
            _ if scales.iter().product::<usize>() == 1 && outer.iter().product::<usize>() == 1 => Cow::Owned(one),
            _ if scales.len() + 1 == shape.len() => Cow::Owned([scales, &[1]].concat()),
            _ => Cow::Borrowed(scales),
        };
        let [scale_outer @ .., down, across] = &*scales else { return None };
        let side = |len: usize, count: usize, tile: Option<usize>| match tile {
            Some(tile) => (tile > 0 && len.div_ceil(tile) == count).then_some(tile.min(len)),
            None => (count > 0 && len.is_multiple_of(count)).then(|| len / count),
        };
        let rows = side(*height, *down, tile.map(|t| t[0]))?;
        let cols = side(*width, *across, tile.map(|t| t[1]))?;
        (outer == scale_outer).then_some(Tiles { height: *height, rows, cols, grid: [*down, *across] })
    }

    /// As [`Tiles::new`], with an error that names the scales.
    pub fn of(store: &SafetensorsStore, shape: &[usize], scales: &TensorInfo, tile: Option<[usize; 2]>) -> Result<Self> {
        Self::new(shape, &scales.shape, tile).ok_or_else(|| {
            let tile = tile.map_or(String::new(), |t| format!(" in tiles of {t:?}"));
            let message = format!("scales of shape {:?} do not fit weights of shape {shape:?}{tile}", scales.shape);
            at(store, &scales.name, mismatch(message))
        })
    }

    /// The scale of group `group` (of `cols` columns) of a row, all matrices' rows counted together.
    pub fn index(&self, row: usize, group: usize) -> usize {
        let (matrix, row) = (row / self.height, row % self.height);
        (matrix * self.grid[0] + row / self.rows) * self.grid[1] + group
    }

    /// Groups in a row.
    pub fn across(&self) -> usize {
        self.grid[1]
    }
}

/// A plane of scales.
pub(super) struct Scales<'a> {
    bytes: Cow<'a, [u8]>,
    /// The stored type; `None` for e8m0 bytes.
    stored: Option<Float>,
    factor: f32,
}

impl<'a> Scales<'a> {
    /// The type that a block stores for scales of this plane's type; an error for types that are no scales.
    pub fn float(store: &SafetensorsStore, info: &TensorInfo) -> Result<Float> {
        match (&info.encoding, dtype(info).as_str()) {
            (Encoding::Codec(codec), _) if codec.float().is_some() => Ok(codec.float().unwrap_or(Float::F32)),
            (_, "F8_E8M0") => Ok(Float::F32),
            (_, other) => Err(at(store, &info.name, mismatch(format!("is {other}, which is no type of scales")))),
        }
    }

    /// Opens a plane; every value is multiplied by `factor` (then all are f32).
    pub fn open(store: &'a SafetensorsStore, info: &TensorInfo, factor: f32) -> Result<Self> {
        let stored = match &info.encoding {
            Encoding::Codec(codec) => codec.float(),
            _ => None,
        };
        Ok(Scales { bytes: store.bytes(&info.name)?, stored, factor })
    }

    /// Scale number `i`.
    pub fn value(&self, i: usize) -> f32 {
        let value = match self.stored {
            Some(float) => codecs::read_float(float, &self.bytes[i * float.size()..]),
            None => match self.bytes[i] {
                0 => f32::from_bits(1 << 22),
                255 => f32::NAN,
                exponent => f32::from_bits(u32::from(exponent) << 23),
            },
        };
        value * self.factor
    }

    /// Writes scale number `i` as a block stores it.
    pub fn write(&self, i: usize, out: &mut [u8]) {
        match self.stored {
            Some(float) if self.factor == 1.0 => {
                out.copy_from_slice(&self.bytes[i * float.size()..][..float.size()]);
            }
            _ => out.copy_from_slice(&self.value(i).to_le_bytes()),
        }
    }
}

/// The one number of a plane, which must be finite and positive.
pub(super) fn positive(store: &SafetensorsStore, info: &TensorInfo) -> Result<f32> {
    let fail = |message: String| Err(at(store, &info.name, mismatch(message)));
    let n: usize = info.shape.iter().product();
    if n != 1 {
        return fail(format!("has shape {:?}, but should be one number", info.shape));
    }
    Scales::float(store, info)?;
    match Scales::open(store, info, 1.0)?.value(0) {
        value if value.is_finite() && value > 0.0 => Ok(value),
        value => fail(format!("is {value}, but should be a positive number")),
    }
}

/// Blocks of some rows: `write` fills the block of a row and a group.
pub(super) fn blocks(rows: Range<usize>, groups: usize, block: usize, write: impl Fn(usize, usize, &mut [u8]) + Sync) -> Vec<u8> {
    let mut out = vec![0u8; rows.len() * groups * block];
    out.par_chunks_mut(BLOCKS_PER_TASK * block.max(1)).enumerate().for_each(|(task, part)| {
        for (i, block) in part.chunks_exact_mut(block.max(1)).enumerate() {
            let at = task * BLOCKS_PER_TASK + i;
            write(rows.start + at / groups, at % groups, block);
        }
    });
    out
}

/// Values of some rows as f32 bytes: `write` fills a row.
pub(super) fn decoded(rows: Range<usize>, row_len: usize, write: impl Fn(usize, &mut [f32]) + Sync) -> Vec<u8> {
    let mut out = vec![0u8; rows.len() * row_len * 4];
    out.par_chunks_mut((row_len * 4).max(1)).enumerate().for_each(|(i, bytes)| {
        let mut row = vec![0f32; row_len];
        write(rows.start + i, &mut row);
        for (bytes, value) in bytes.chunks_exact_mut(4).zip(row) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_find_their_weights() {
        let tiles = |shape: &[usize], scales: &[usize], tile| Tiles::new(shape, scales, tile);
        // One for all, given as a scalar, a vector or a matrix.
        for scales in [&[][..], &[1], &[1, 1]] {
            let t = tiles(&[6, 8], scales, None).unwrap();
            assert_eq!((t.cols, t.across(), t.index(5, 0)), (8, 1, 0));
        }
        // One per row, per group, per tile with a partial one at the edge.
        assert_eq!(tiles(&[6, 8], &[6], None).unwrap().index(5, 0), 5);
        assert_eq!(tiles(&[6, 8], &[6, 1], None).unwrap().index(5, 0), 5);
        assert_eq!(tiles(&[6, 8], &[6, 2], None).unwrap().index(5, 1), 11);
        let t = tiles(&[6, 8], &[2, 2], Some([4, 4])).unwrap();
        assert_eq!((t.cols, t.index(3, 1), t.index(4, 0)), (4, 1, 2));
        // Several matrices.
        let t = tiles(&[3, 6, 8], &[3, 2, 2], Some([4, 4])).unwrap();
        assert_eq!((t.index(6, 0), t.index(17, 1)), (4, 11));
        assert_eq!(tiles(&[3, 6, 8], &[3, 1, 1], None).unwrap().index(17, 0), 2);
        for (scales, tile) in [(&[4][..], None), (&[6, 3], None), (&[3, 2], Some([4, 4])), (&[0, 1], None), (&[2, 6, 1], None)] {
            assert_eq!(tiles(&[6, 8], scales, tile), None, "{scales:?}");
        }
        assert_eq!(tiles(&[8], &[1], None), None);
    }
}
