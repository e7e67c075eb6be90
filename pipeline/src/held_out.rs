//! The texts of an allocation: what the solver sees, and what is held out for probes and predictions.

use crate::calibration::CalibrationOptions;
use crate::opened::Opened;
use bitsmith_datasets::{DataSpec, EvalWindows, Style, WindowSet};
use bitsmith_formats::{Error, Result};

/// Probes use no more windows than this.
pub const PROBED: usize = 16;
/// Predictions are measured on no more windows than this. A few tokens and a few articles make much of a divergence, so that few windows
/// do not tell it.
const MEASURED: usize = 64;
/// At least one window of calibration text in so many is held out.
const HOLD_OUT: usize = 8;
/// Beyond the windows for calibration, one more for so many of them is asked for, to be held out.
const MORE: usize = 2;

/// Windows of both kinds.
pub struct Texts {
    /// For the solver.
    pub calibration: Vec<Vec<u32>>,
    /// For probes and predictions, as one domain. They lie evenly over their text.
    pub held_out: EvalWindows,
}

impl Texts {
    /// The windows that the calibration names. Those that are held out come from `data`, or from calibration text that no calibration
    /// window has; where the text is too short for that, some calibration windows are held out instead.
    pub fn of(calibration: &CalibrationOptions, data: Option<&DataSpec>, model: &Opened) -> Result<Texts> {
        let samples = calibration.samples;
        match data {
            Some(data) => {
                let other = CalibrationOptions { data: Some(data.clone()), samples: MEASURED, ..calibration.clone() };
                let held_out = split(other.windows(model)?, 0)?.held_out;
                Ok(Texts { calibration: calibration.windows(model)?.windows, held_out })
            }
            None => {
                let more = CalibrationOptions { samples: samples + (samples / MORE).min(MEASURED), ..calibration.clone() };
                split(more.windows(model)?, samples)
            }
        }
    }
}

/// So many windows for the solver, and full ones that are held out: what there are more, but no fewer than one in [`HOLD_OUT`]. A single
/// window is both.
fn split(set: WindowSet, samples: usize) -> Result<Texts> {
    let full: Vec<usize> = (0..set.windows.len()).filter(|w| set.windows[*w].len() == set.ctx).collect();
    if full.is_empty() {
        let message = format!("`{}` has no window of {} tokens to hold out", set.data, set.ctx);
        return Err(Error::usage(message).hint("give more text, or a shorter --ctx"));
    }
    let more = set.windows.len().saturating_sub(samples);
    let n = more.max(full.len() / HOLD_OUT).clamp(1, MEASURED);
    let held: Vec<usize> = spread(full.len(), n).map(|at| full[at]).collect();
    let rest: Vec<Vec<u32>> = (0..set.windows.len()).filter(|w| !held.contains(w)).map(|w| set.windows[w].clone()).collect();
    let calibration = if rest.is_empty() { set.windows.clone() } else { rest };
    let windows: Vec<Vec<u32>> = held.iter().map(|w| set.windows[*w].clone()).collect();
    let (domains, domain_of) = (vec!["held out".into()], vec![0; windows.len()]);
    let held_out = EvalWindows { set: WindowSet { windows, domains, domain_of, ..set }, style: Style::Paper };
    Ok(Texts { calibration, held_out })
}

/// Indices of `some` of `all` things, or of all of them if they are fewer, spread evenly.
fn spread(all: usize, some: usize) -> impl Iterator<Item = usize> {
    let some = some.min(all);
    (0..some).map(move |i| (2 * i + 1) * all / (2 * some))
}

/// At most so many of windows of one domain, spread evenly.
pub fn few(eval: &EvalWindows, most: usize) -> EvalWindows {
    let windows: Vec<Vec<u32>> = spread(eval.set.windows.len(), most).map(|at| eval.set.windows[at].clone()).collect();
    let domain_of = vec![0; windows.len()];
    EvalWindows { set: WindowSet { windows, domain_of, ..eval.set.clone() }, style: eval.style }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Windows of 4 tokens, all of which are the window's number, and a short one at the end.
    fn set(full: u32) -> WindowSet {
        let windows: Vec<Vec<u32>> = (0..full).map(|w| vec![w; 4]).chain([vec![full; 3]]).collect();
        let domain_of = vec![0; windows.len()];
        let domains = vec!["a".into()];
        WindowSet { data: "x".into(), sha256: "s".into(), ctx: 4, domains, windows, domain_of, notes: Vec::new() }
    }

    fn first(windows: &[Vec<u32>]) -> Vec<u32> {
        windows.iter().map(|w| w[0]).collect()
    }

    #[test]
    fn no_window_is_both_unless_there_is_one_alone() {
        for (full, samples, held) in [(23, 16, 8), (15, 16, 1), (31, 40, 3), (200, 100, 64)] {
            let texts = split(set(full), samples).unwrap();
            assert_eq!(texts.held_out.set.windows.len(), held, "{full} {samples}");
            assert!(texts.held_out.set.windows.iter().all(|w| w.len() == 4));
            let mut all = [first(&texts.calibration), first(&texts.held_out.set.windows)].concat();
            all.sort();
            assert_eq!(all, (0..=full).collect::<Vec<_>>());
        }
        let mut one = set(1);
        one.windows.truncate(1);
        let texts = split(one, 1).unwrap();
        assert_eq!(texts.calibration, texts.held_out.set.windows);
        assert!(split(set(0), 1).is_err());
    }

    #[test]
    fn few_windows_lie_evenly() {
        let held_out = split(set(40), 1).unwrap().held_out;
        assert_eq!(first(&few(&held_out, 4).set.windows), [5, 15, 25, 35]);
        assert_eq!(few(&held_out, 99).set.windows, held_out.set.windows);
    }
}
