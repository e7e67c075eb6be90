//! Parts of a checkpoint's tensors, for work in bounded memory.

use crate::arch::{Order, Place, Within};
use crate::checkpoint::{Checkpoint, WeightSource};
use crate::role::Role;
use bitsmith_formats::{EncodedTensor, Encoding, Error, Result, in_large_pages};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;

/// Weights that a thread decodes at a time to look for NaN.
const CHECKED: usize = 1 << 20;

impl Checkpoint {
    /// Rows of this tensor that the container may have rearranged among themselves: reading takes them together.
    pub fn row_align(&self, role: Role) -> usize {
        match self.places(role) {
            // The elements of a vector are one row.
            Ok([place, ..]) if place.shape.len() > 1 => place.order.align(place.n_rows()),
            _ => 1,
        }
    }

    /// Some rows of a tensor decoded to f32, in Hugging Face's order. Of a tensor with more than two dimensions, all but the last
    /// make rows; a vector is one row. Multiples of [`Checkpoint::row_align`] read nothing else.
    pub fn read_rows(&self, role: Role, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut values = Vec::new();
        self.read_rows_into(role, rows, &mut values)?;
        Ok(values)
    }

    /// [`Checkpoint::read_rows`] into a buffer that is used again: its contents are replaced.
    pub fn read_rows_into(&self, role: Role, rows: Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        let at = |place: &Place, e: Error| e.file(self.store().file_of(&place.name)).tensor(&place.name);
        if let [place] = self.places(role)?
            && (&place.order, &place.within) == (&Order::Same, &None)
        {
            return self.store().read_rows_into(&place.name, rows, values).map_err(|e| at(place, e));
        }
        values.clear();
        for (place, rows) in self.overlapping(role, rows)? {
            let read = |r: Range<usize>| self.store().read_rows(&place.name, r).map_err(|e| at(place, e));
            let mut part = in_order(place, rows, read)?;
            if let Order::Plus(offset) = place.order {
                part.iter_mut().for_each(|v| *v -= offset);
            }
            values.append(&mut part);
        }
        Ok(())
    }

    /// Some rows of a matrix as blocks of its codec, in Hugging Face's order, as [`Checkpoint::read_rows`] has them.
    pub fn read_blocks(&self, role: Role, rows: Range<usize>) -> Result<EncodedTensor> {
        let mut found: Option<EncodedTensor> = None;
        let n = rows.len();
        for (place, rows) in self.overlapping(role, rows)? {
            let name = &place.name;
            let at = |e: Error| e.file(self.store().file_of(name)).tensor(name);
            let info = self.store().find(name).ok_or_else(|| at(Error::missing("no such tensor")))?;
            let Encoding::Codec(codec) = info.encoding else {
                return Err(at(Error::unsupported(format!("{} is not made of blocks", info.encoding))));
            };
            let in_a_row = place.within.is_some() && place.shape.len() < 2;
            if in_a_row || matches!(place.order, Order::Transposed | Order::Plus(_)) {
                return Err(at(Error::unsupported("this tensor's values do not stand in blocks of rows")));
            }
            let read = |r: Range<usize>| match self.store().row_bytes(name, r).map_err(at)? {
                Cow::Owned(bytes) => Ok(bytes),
                Cow::Borrowed(bytes) => {
                    let mut copy = in_large_pages(Vec::with_capacity(bytes.len()));
                    copy.extend_from_slice(bytes);
                    Ok(copy)
                }
            };
            let bytes = in_order(place, rows, read)?;
            match &mut found {
                None => found = Some(EncodedTensor { shape: vec![n, info.row_len()], codec, bytes, scale: info.scale }),
                Some(first) if first.codec == codec && first.scale == info.scale => first.bytes.extend(bytes),
                Some(_) => return Err(at(Error::unsupported("this tensor's format differs from its neighbours'"))),
            }
        }
        found.ok_or_else(|| Error::failed("no rows").tensor(role.to_string()))
    }

    /// Whether a matrix is stored in blocks of one codec, which can be computed with as they are. Plain f32 counts, so that every container
    /// of the same weights gives the same bits.
    pub(crate) fn in_blocks(&self, role: Role) -> Result<bool> {
        let places = self.places(role)?;
        let plain = |place: &Place| match self.store().find(&place.name).map(|info| &info.encoding) {
            Some(Encoding::Codec(codec)) => Some(*codec),
            _ => None,
        };
        let first = plain(&places[0]);
        let fits = |p: &Place| matches!(p.order, Order::Same | Order::Rows(_)) && p.shape.len() > 1 && plain(p) == first;
        Ok(first.is_some() && places.iter().all(fits))
    }

    /// All rows as blocks, in the shape that the spec gives, after a look at every value: NaN or infinity is an error that names the row.
    pub(crate) fn read_checked_blocks(&self, role: Role) -> Result<EncodedTensor> {
        let shape = self.spec().shape(role.part);
        let row_len = shape.last().copied().unwrap_or(1).max(1);
        let rows = shape.iter().product::<usize>() / row_len;
        let per_part = (CHECKED / row_len).max(1).next_multiple_of(self.row_align(role));
        let check = |values: &mut Vec<f32>, part: usize| {
            let first = part * per_part;
            self.read_rows_into(role, first..rows.min(first + per_part), values).err()
        };
        // Of several damaged values the first is reported, whichever thread was faster.
        let parts = (0..rows.div_ceil(per_part)).into_par_iter();
        if let Some(error) = parts.map_init(Vec::new, check).find_map_first(|damage| damage) {
            return Err(error);
        }
        Ok(EncodedTensor { shape, ..self.read_blocks(role, 0..rows)? })
    }

    /// The places that hold some rows, each with its own rows.
    fn overlapping(&self, role: Role, rows: Range<usize>) -> Result<Vec<(&Place, Range<usize>)>> {
        let mut first = 0;
        let mut found = Vec::new();
        for place in self.places(role)? {
            let here = rows.start.max(first)..rows.end.min(first + place.n_rows());
            if !here.is_empty() {
                found.push((place, here.start - first..here.end - first));
            }
            first += place.n_rows();
        }
        Ok(found)
    }
}

/// Rows of a place in our order; `read` reads rows of the container's tensor.
fn in_order<T: Copy + Default>(
    place: &Place,
    rows: Range<usize>,
    read: impl FnOnce(Range<usize>) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let vector = place.shape.len() < 2;
    if let Some(within) = &place.within {
        return from_within(within, &place.shape, &place.order, rows, read);
    }
    match &place.order {
        Order::Same | Order::Plus(_) => read(rows),
        Order::Rows(_) if vector => Ok(place.order.undo(read(rows)?, 1)),
        Order::Rows(chunk) => {
            let whole = rows.start / chunk.len() * chunk.len()..rows.end.next_multiple_of(chunk.len());
            let values = read(whole.clone())?;
            let row = values.len() / whole.len().max(1);
            let mut values = place.order.undo(values, row);
            values.truncate((rows.end - whole.start) * row);
            values.drain(..(rows.start - whole.start) * row);
            Ok(values)
        }
        Order::Transposed => {
            let [n_out, n_in] = place.shape[..] else { return Err(Error::failed("only matrices can be transposed")) };
            let values = read(0..n_in)?;
            Ok(rows.flat_map(|r| (0..n_in).map(move |c| (r, c))).map(|(r, c)| values[c * n_out + r]).collect())
        }
    }
}

/// As [`in_order`], of a place inside a larger tensor.
fn from_within<T: Copy + Default>(
    within: &Within,
    shape: &[usize],
    order: &Order,
    rows: Range<usize>,
    read: impl FnOnce(Range<usize>) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let Within { first, start, stride, .. } = *within;
    match (shape, order) {
        (&[width], Order::Same) => {
            let row = read(first..first + 1)?;
            Ok((0..width).map(|i| row[start + i * stride]).collect())
        }
        (&[_, n_in], Order::Transposed) => {
            let values = read(first..first + n_in)?;
            let width = values.len() / n_in;
            let columns = rows.map(|r| start + r * stride);
            Ok(columns.flat_map(|column| values.iter().skip(column).step_by(width).copied()).collect())
        }
        (&[_, _], Order::Same) if !rows.is_empty() => {
            let span = first + rows.start * stride..first + (rows.end - 1) * stride + 1;
            let values = read(span.clone())?;
            let row = values.len() / span.len();
            Ok(values.chunks(row * stride).flat_map(|chunk| chunk[..row].iter().copied()).collect())
        }
        _ => Err(Error::failed("only rows and columns can be parts of a larger tensor")),
    }
}
