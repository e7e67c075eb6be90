//! Panels: 16 rows of weights, some columns wide, as integers in the order in which [`super::tile`] reads them.

use super::{Form, PANEL_ROWS};

/// Two 16-bit integers as one word, the first in its low half.
#[inline(always)]
pub(crate) fn pair(low: i16, high: i16) -> u32 {
    u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16
}

/// A panel's weights. Words of one column of a table belong to the 16 rows.
#[derive(Debug)]
pub(crate) struct Panel {
    /// Codes, four columns to one word or two ([`Form::words`]), `(segment, run, step, word, row)`. From 16-bit numbers the code that means
    /// zero is subtracted.
    pub codes: Vec<[u32; PANEL_ROWS]>,
    /// The integer scale, twice to a word, `(segment, run, row)`.
    pub scales: Vec<[u32; PANEL_ROWS]>,
    /// Pairs of offsets, multiplied with pairs of activation sums, `(segment, pair, row)`.
    pub offsets: Vec<[u32; PANEL_ROWS]>,
    /// `(segment, row)`.
    pub steps: Vec<[f32; PANEL_ROWS]>,
    /// What offsets are multiplied with, not read with [`super::Offset::Zero`]. `(segment, row)`.
    pub mins: Vec<[f32; PANEL_ROWS]>,
}

impl Panel {
    /// A panel of zeros for the widest part of a format's rows.
    pub fn new(form: &Form) -> Self {
        let segments = form.panel_columns() / form.segment;
        let runs = segments * form.runs();
        Panel {
            codes: vec![[0; PANEL_ROWS]; runs * form.steps() * form.words()],
            scales: vec![[0; PANEL_ROWS]; runs],
            offsets: vec![[0; PANEL_ROWS]; segments * form.pairs()],
            steps: vec![[0.0; PANEL_ROWS]; segments],
            mins: vec![[0.0; PANEL_ROWS]; segments],
        }
    }
}
