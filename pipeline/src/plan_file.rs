//! Plans as TOML files, to be read, changed and given back.

use crate::map::short;
use bitsmith_formats::atomic::write_file;
use bitsmith_formats::{CodecId, Error, Result};
use bitsmith_quantize::Plan;
use bitsmith_runtime::{ModelSpec, Role};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// The file's content.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct PlanFile {
    /// What the plan was made for. Nothing depends on this and the next three.
    #[serde(rename = "target")]
    _target: Option<String>,
    #[serde(rename = "bytes")]
    _bytes: Option<u64>,
    #[serde(rename = "bits-per-weight")]
    _bpw: Option<f64>,
    #[serde(rename = "predicted-kld")]
    _predicted: Option<f64>,
    /// Formats by part or tensor.
    tensors: BTreeMap<String, String>,
}

/// Writes the formats of all matrices. `predicted` has the mean divergence that is expected, of all tensors and of each by itself.
pub fn write(
    path: &Path,
    target: &str,
    spec: &ModelSpec,
    plan: &Plan,
    predicted: Option<(f64, &BTreeMap<Role, f64>)>,
) -> Result<()> {
    let bytes = plan.bytes(spec);
    let mut text = String::from(
        "# The format of every matrix, for --plan. A part's name (attn_v) stands for that part in all layers; one tensor's own line wins.\n",
    );
    let bpw = bytes as f64 * 8.0 / spec.n_weights() as f64;
    text.push_str(&format!("target = \"{target}\"\nbytes = {bytes}\nbits-per-weight = {bpw:.4}\n"));
    if let Some((kld, _)) = predicted {
        text.push_str(&format!("predicted-kld = {kld:.4e} # nats per token, on text that no solver saw\n"));
    }
    text.push_str("\n[tensors]\n");
    for entry in plan.entries.iter().filter(|e| e.role.part.is_matrix()) {
        let line = format!("\"{}\" = \"{}\"", short(entry.role), entry.codec);
        text.push_str(&match predicted.and_then(|(_, each)| each.get(&entry.role)) {
            Some(kld) => format!("{line:<44} # adds {kld:.2e}\n"),
            None => format!("{line}\n"),
        });
    }
    write_file(path, text.as_bytes())
}

/// The formats that a file names, as overrides: parts first, so that a tensor's own line wins.
pub fn read(path: &Path) -> Result<Vec<(String, CodecId)>> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    parse(&text).map_err(|e| e.file(path))
}

fn parse(text: &str) -> Result<Vec<(String, CodecId)>> {
    let hint = "a plan has a table [tensors] with lines like \"attn_v\" = \"q6_k\"";
    let file: PlanFile = toml::from_str(text).map_err(|e| Error::corrupt(e.to_string().trim().to_string()).hint(hint))?;
    let named = file.tensors.into_iter().map(|(name, codec)| Ok((name, codec.parse()?)));
    let mut overrides = named.collect::<Result<Vec<(String, CodecId)>>>()?;
    overrides.sort_by_key(|(name, _)| name.starts_with("blk."));
    Ok(overrides)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_before_tensors() {
        let text = "target = 'gguf:auto'\n[tensors]\n'blk.0.attn_v' = 'q8_0'\n'output' = 'q6_k'\n'attn_v' = 'q4_k'\n";
        let expected = [("attn_v", CodecId::Q4K), ("output", CodecId::Q6K), ("blk.0.attn_v", CodecId::Q8_0)];
        assert_eq!(parse(text).unwrap(), expected.map(|(name, codec)| (name.to_string(), codec)));
        for bad in ["", "[tensors]\nattn_v = 'q9'", "[tensors]\nattn_v = 4", "colour = 'blue'\n[tensors]"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
