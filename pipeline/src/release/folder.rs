//! A release that is one folder: MLX, GPTQ, AWQ, compressed-tensors, ModelOpt, or plain.

use super::Files;
use super::card::{Entry, origin, table};
use crate::manifest::{CARD, IN_FOLDER, LAUNCHER, Manifest};
use crate::quantize::Job;
use crate::target::Target;
use bitsmith_convert::card::{Card, Kind};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use std::fmt::Write as _;
use std::path::Path;

/// Models whose reasoning and tool calls mlx-openai-server takes apart, and its name for how.
const PARSERS: [(&str, &str); 3] = [("qwen3", "qwen3"), ("qwen3_moe", "qwen3_moe"), ("gpt_oss", "harmony")];

/// Writes the card with what was measured, checksums, and what serves the folder.
pub(super) fn write(job: &Job<'_>, dir: &Path) -> Result<()> {
    let manifest = Manifest::load(dir).ok_or_else(|| Error::missing("the artifact has no manifest").file(dir))?;
    let target: Target = manifest.recipe.target.parse()?;
    let mut files = Files::new(dir);
    let known = manifest.subjects();
    let entry = Entry::new(dir.file_name().unwrap_or_default().to_string_lossy().into_owned(), manifest);
    let entries = [Entry { n_files: 1, ..entry }];
    files.put_results(&entries)?;
    files.put(CARD, &readme(job, target, &entries))?;
    if target.container() == "mlx" && job.model.checkpoint.spec().arch.name != "bert" {
        files.put(LAUNCHER, &launcher(job, dir))?;
        executable(&dir.join(LAUNCHER))?;
    }
    files.names.insert(IN_FOLDER.into());
    files.sums(known)
}

fn readme(job: &Job<'_>, target: Target, entries: &[Entry]) -> String {
    let sees = job.model.checkpoint.tower().is_some();
    let kind = match target.container() {
        "mlx" => Kind::mlx(sees),
        "hf" => Kind::hf(),
        _ => Kind::packed(target.packed().map_or(target.container(), |p| p.method())),
    };
    let quantized = target.is_quantized();
    let card = Card { about: &job.model.about, sees, quantized, publisher: job.options.publisher.as_deref(), tags: &[] };
    let mut body = card.introduction(&kind, entries[0].manifest.bpw);
    let _ = write!(body, "\n## Quality\n\n{}", table(entries));
    if target.container() == "mlx" {
        let _ = write!(body, "\n`./{LAUNCHER}` serves the folder with mlx-openai-server on 127.0.0.1.\n");
    }
    let _ = write!(body, "\n## How it was made\n\n{}", origin(entries));
    card.render(&kind, &body)
}

fn launcher(job: &Job<'_>, dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let spec = job.model.checkpoint.spec();
    let kind = if job.model.checkpoint.tower().is_some() { "multimodal" } else { "lm" };
    let parser = PARSERS.iter().find(|(arch, _)| *arch == spec.arch.name);
    let parser = parser.map_or(String::new(), |(_, p)| format!(" \\\n  --reasoning-parser {p} --tool-call-parser {p}"));
    format!(
        "#!/bin/sh\n# Serves this folder with mlx-openai-server (pip install mlx-openai-server) as OpenAI's API, on this machine only.\n\
         exec mlx-openai-server launch --model-path \"$(dirname \"$0\")\" --model-type {kind} \\\n  --served-model-name '{}' \
         --context-length {} --host 127.0.0.1{parser} \"$@\"\n",
        name.replace('\'', ""),
        spec.context_length
    )
}

#[cfg(unix)]
fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).map_err(|e| Error::write(path, e))
}

#[cfg(not(unix))]
fn executable(_: &Path) -> Result<()> {
    Ok(())
}
