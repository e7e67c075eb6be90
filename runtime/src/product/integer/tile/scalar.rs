//! The inner loop without vector instructions.

use super::{Parts, Sums};
use crate::product::integer::{Form, Offset, PANEL_ROWS};

/// Rows of activations in a tile.
const WIDTH: usize = 4;

/// The two halves of a word.
fn halves(word: u32) -> [i32; 2] {
    [i32::from(word as i16), i32::from((word >> 16) as i16)]
}

/// Adds the products of a part of panel `index` to the sums.
pub(super) fn tile(form: &Form, p: &Parts<'_>, index: usize, sums: &mut Sums) {
    let panel = &p.panels[index];
    let words = form.steps() * form.words();
    for segment in 0..p.segments {
        let mut whole = [[0i32; PANEL_ROWS]; WIDTH];
        for run in 0..p.runs {
            let at = segment * p.runs + run;
            let x = &p.codes[at * (words + 1) * WIDTH..];
            for (a, whole) in whole.iter_mut().enumerate() {
                let [low, high] = halves(x[a]);
                for (row, whole) in whole.iter_mut().enumerate() {
                    let mut sum = low + high;
                    for word in 0..words {
                        let (w, x) = (panel.codes[at * words + word][row], x[(word + 1) * WIDTH + a]);
                        sum += if form.words() == 1 {
                            let bytes = w.to_le_bytes().into_iter().zip(x.to_le_bytes());
                            bytes.map(|(w, x)| i32::from(w) * i32::from(x.cast_signed())).sum::<i32>()
                        } else {
                            halves(w).iter().zip(halves(x)).map(|(w, x)| w * x).sum()
                        };
                    }
                    *whole += sum * halves(panel.scales[at][row])[0];
                }
            }
        }
        for (a, whole) in whole.iter().enumerate() {
            let scale = p.scales[segment * p.stride + a];
            for row in 0..PANEL_ROWS {
                let offset: i32 = (segment * p.pairs..(segment + 1) * p.pairs)
                    .map(|pair| {
                        let ([w0, w1], [x0, x1]) = (halves(panel.offsets[pair][row]), halves(p.sums[pair * p.stride + a]));
                        w0 * x0 + w1 * x1
                    })
                    .sum();
                let sum = &mut sums[a][PANEL_ROWS * index + row];
                *sum = (whole[row] as f32).mul_add(panel.steps[segment][row] * scale, *sum);
                if form.offset == Offset::Min {
                    *sum = (-(panel.mins[segment][row] * scale)).mul_add(offset as f32, *sum);
                }
            }
        }
    }
}
