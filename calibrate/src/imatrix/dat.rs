//! The older layout, little-endian: the number of entries; per entry its name, the number of calls and of values, and the values, which
//! are means of x² times the number of calls; then the number of windows and the name of the text. Lengths and numbers are i32, values f32.
//!
//! A call is a window of text of unknown length. Sums and counts in tokens are the stored numbers times an assumed length; with a power
//! of two, reading and writing again gives the same bytes.

use super::{Entry, Imatrix};
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Longest name of a tensor or text.
const MAX_NAME: usize = 1 << 16;

struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(n).ok_or_else(|| not_one(format!("it ends inside {what}")))?;
        self.left = left;
        Ok(taken)
    }
    /// A number of at least `least`.
    fn number(&mut self, least: i32, what: &str) -> Result<usize> {
        let value = self.take(4, what)?.first_chunk().map(|b| i32::from_le_bytes(*b));
        value.filter(|v| *v >= least).map(|v| v as usize).ok_or_else(|| not_one(format!("{what} is {}", value.unwrap_or(0))))
    }
    fn text(&mut self, what: &str) -> Result<String> {
        let len = self.number(0, what)?;
        if len > MAX_NAME {
            return Err(not_one(format!("{what} has {len} bytes")));
        }
        String::from_utf8(self.take(len, what)?.to_vec()).map_err(|_| not_one(format!("{what} is not UTF-8")))
    }
}

fn not_one(why: String) -> Error {
    Error::corrupt(format!("not an importance matrix: {why}"))
        .hint("give a file written by `bitsmith calibrate --imatrix` or by llama-imatrix; a damaged one must be made again")
}

pub(super) fn read(path: &Path, chunk_size: u32) -> Result<Imatrix> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    let mut reader = Reader { left: &bytes };
    let n = reader.number(1, "the number of entries")?;
    let mut entries = BTreeMap::new();
    for _ in 0..n {
        let name = reader.text("a tensor's name")?;
        let named = |e: Error| e.tensor(&name);
        let calls = reader.number(0, "the number of calls").map_err(named)?;
        let n_values = reader.number(1, "the number of values").map_err(named)?;
        let values = reader.take(n_values.saturating_mul(4), "the values").map_err(named)?;
        let sum = |b: &[u8; 4]| f64::from(f32::from_le_bytes(*b)) * f64::from(chunk_size);
        let entry = Entry {
            sums: values.as_chunks::<4>().0.iter().map(sum).collect(),
            counts: vec![calls as u64 * u64::from(chunk_size)],
        };
        if entries.insert(name.clone(), entry).is_some() {
            return Err(Error::corrupt("appears twice").tensor(name));
        }
    }
    // Old files end here.
    let (mut chunk_count, mut datasets) = (0, Vec::new());
    if !reader.left.is_empty() {
        chunk_count = reader.number(0, "the number of windows")? as u32;
        if !reader.left.is_empty() {
            datasets.push(reader.text("the name of the text")?);
        }
        if !reader.left.is_empty() {
            return Err(not_one(format!("{} bytes follow its end", reader.left.len())));
        }
    }
    Ok(Imatrix { entries, datasets, chunk_count, chunk_size })
}

pub(super) fn write(imatrix: &Imatrix, path: &Path) -> Result<()> {
    let mut out = Vec::new();
    let number = |out: &mut Vec<u8>, n: u64, what: &str| -> Result<()> {
        let n = i32::try_from(n).map_err(|_| Error::unsupported(format!("{what} is {n}, too large for a .dat file")))?;
        out.extend(n.to_le_bytes());
        Ok(())
    };
    // Entries without any data cannot be told from others here.
    let entries: Vec<_> = imatrix.entries.iter().filter(|(_, e)| e.counts.iter().any(|c| *c > 0)).collect();
    if entries.is_empty() {
        return Err(Error::failed("no tensor saw any token").file(path));
    }
    let chunk_size = u64::from(imatrix.chunk_size.max(1));
    let mut fill = || -> Result<()> {
        number(&mut out, entries.len() as u64, "the number of entries")?;
        for (name, entry) in &entries {
            number(&mut out, name.len() as u64, "the length of a name")?;
            out.extend(name.as_bytes());
            let calls = entry.counts.iter().max().map_or(0, |most| most.div_ceil(chunk_size));
            number(&mut out, calls, "the number of calls")?;
            number(&mut out, entry.sums.len() as u64, "the number of values")?;
            for (count, sums) in entry.matrices() {
                // Experts that saw nothing count evenly, as if every mean were 1.
                let value = |s: &f64| if count > 0 { (s * (calls as f64 / count as f64)) as f32 } else { calls as f32 };
                if sums.iter().any(|s| !value(s).is_finite()) {
                    return Err(Error::corrupt("a value is too large for F32").tensor(*name));
                }
                sums.iter().for_each(|s| out.extend(value(s).to_le_bytes()));
            }
        }
        number(&mut out, imatrix.chunk_count.into(), "the number of windows")?;
        let text = imatrix.datasets.join(", ");
        number(&mut out, text.len() as u64, "the length of a name")?;
        out.extend(text.as_bytes());
        Ok(())
    };
    fill().map_err(|e| e.file(path))?;
    write_file(path, &out)
}
