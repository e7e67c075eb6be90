//! A release of GGUF files.

use super::card::{Entry, advice, origin, recommended, table};
use super::{Files, KEY, VERSION, document, provenance};
use crate::calibration::{Loaded, stats_meta};
use crate::gather::gather;
use crate::manifest::{CARD, IN_FOLDER, InputFile, Manifest, list_files, write_json};
use crate::quantize::Job;
use bitsmith_calibrate::imatrix::{DEFAULT_CHUNK_SIZE, Imatrix, Layout};
use bitsmith_calibrate::{Detail, Stats};
use bitsmith_convert::card::{Card, Kind};
use bitsmith_convert::ollama::{self, Chat, Modelfile};
use bitsmith_convert::yaml;
use bitsmith_formats::hash::sha256_bytes;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::Path;

/// What manifests beside files end in.
const MANIFEST: &str = ".bitsmith.json";

/// Writes the release in `dir`, which `artifact` was just made in.
pub(super) fn write(job: &Job<'_>, dir: &Path, artifact: &Path) -> Result<()> {
    let inputs = Manifest::load(artifact).map(|m| m.recipe.inputs);
    let mut entries = Vec::new();
    let mut files = Files::new(dir);
    for name in list_files(dir)? {
        let Some(file) = name.strip_suffix(MANIFEST) else { continue };
        match Manifest::load(&dir.join(file)) {
            Some(m) if Some(&m.recipe.inputs) == inputs.as_ref() && !m.files.is_empty() => {
                files.names.insert(name.clone());
                entries.push(Entry::new(file.to_string(), m));
            }
            _ => job.context.progress.warn(&format!("{file} was made of another source: it is no part of the release")),
        }
    }
    let texts = files.put_licenses(job)?;
    let chat = chat(job)?;
    modelfiles(job, &mut files, &entries, chat.as_ref(), texts)?;
    let imatrix = imatrix(job, dir, inputs.as_deref().unwrap_or_default())?;
    files.put_results(&entries)?;
    let mut known: Vec<(String, String)> = entries.iter().flat_map(|e| e.manifest.subjects()).collect();
    known.extend(imatrix.iter().map(|(file, _)| (file.name.clone(), file.sha256.clone())));
    let manifests: Vec<&Manifest> = entries.iter().map(|e| &e.manifest).collect();
    let mut document = provenance::statement(known.clone(), &manifests);
    document[KEY] = VERSION.into();
    document["artifacts"] = entries.iter().map(described).collect();
    document["imatrix"] = imatrix.as_ref().map(|(file, key)| json!({ "file": file.name, "key": key })).into();
    write_json(&dir.join(IN_FOLDER), &document)?;
    files.names.insert(IN_FOLDER.into());
    files.put(CARD, &readme(job, &entries, chat.as_ref(), imatrix.as_ref().map(|(f, _)| f.name.as_str())))?;
    if let Some(publisher) = &job.options.publisher {
        files.put("model.yaml", &model_yaml(job, publisher, &entries))?;
    }
    files.sums(known)
}

/// What `reproduce` needs of an artifact, and what it measures.
fn described(entry: &Entry) -> Value {
    let m = &entry.manifest;
    let mut quality = m.quality.clone();
    // By window it stands in the artifact's own manifest.
    for kld in quality.iter_mut().filter_map(|q| q["kld"].as_array_mut()).flatten() {
        kld.as_object_mut().map(|k| k.remove("windows"));
    }
    json!({
        "file": entry.file, "target": m.recipe.target, "method": m.recipe.method, "bytes": m.bytes, "sha256": m.sha256, "bpw": m.bpw,
        "made": m.made, "inputs": m.recipe.inputs, "quality": quality,
    })
}

/// The form of the chat template that Ollama understands.
fn chat(job: &Job<'_>) -> Result<Option<Chat>> {
    let form = ollama::chat(&job.model.tokenizer()?).and_then(|chat| {
        // What a Modelfile cannot quote is found out here.
        Modelfile { chat: chat.clone(), ..Modelfile::default() }.render().map(|_| chat)
    });
    match form {
        Ok(Some(chat)) => Ok(Some(chat)),
        // A base model goes on with the prompt as it is, whatever Ollama would guess.
        Ok(None) => Ok(Some(Chat { template: ollama::PLAIN.into(), ..Chat::default() })),
        Err(e) => {
            job.context.progress.warn(&format!("Modelfile without TEMPLATE, Ollama will guess one: {}", e.message));
            Ok(None)
        }
    }
}

fn modelfiles(job: &Job<'_>, files: &mut Files<'_>, entries: &[Entry], chat: Option<&Chat>, texts: Vec<String>) -> Result<()> {
    let about = &job.model.about;
    let names = [&about.license_name, &about.license].into_iter().flatten().take(1).cloned();
    let generation = job.model.folder_files().ok().and_then(|f| f.generation().cloned());
    let mut modelfile = Modelfile {
        chat: chat.cloned(),
        parameters: ollama::parameters(generation.as_ref(), job.model.checkpoint.spec().context_length),
        licenses: if texts.is_empty() { names.collect() } else { texts },
        from: Vec::new(),
    };
    for entry in entries {
        let m = &entry.manifest;
        modelfile.from = m.files.iter().map(|f| f.name.clone()).collect();
        modelfile.from.extend(m.companions.iter().filter(|c| c.kind == "mmproj").map(|c| c.file.clone()));
        let text = modelfile.render()?;
        if recommended(entries).is_some_and(|r| r.file == entry.file) {
            files.put("Modelfile", &text)?;
        }
        if entries.len() > 1 {
            files.put(&format!("Modelfile.{}", entry.encoding), &text)?;
        }
    }
    // What Ollama reads when it runs the repository straight from the hub.
    if let Some(chat) = chat {
        files.put("template", &chat.template)?;
        if let Some(system) = &chat.system {
            files.put("system", system)?;
        }
    }
    let params = serde_json::to_string_pretty(&modelfile.params()).map_err(|e| Error::failed(e.to_string()))?;
    files.put("params", &(params + "\n"))
}

/// llama.cpp's importance matrix of what the job was calibrated on, and the key of what it was made of. One that is there is not made
/// again.
fn imatrix(job: &Job<'_>, dir: &Path, inputs: &[InputFile]) -> Result<Option<(InputFile, String)>> {
    let Some(calibration) = &job.calibration else { return Ok(None) };
    let hashes: String = inputs.iter().map(|f| f.sha256.as_str()).collect();
    let key = sha256_bytes(format!("{hashes}{calibration}").as_bytes());
    // No runtime takes a file for a model that has this word in its name.
    let path = dir.join(format!("{}-imatrix.gguf", job.stem()));
    if path.is_file() && document(dir).is_some_and(|d| d["imatrix"]["key"] == key.as_str()) {
        return Ok(Some((InputFile::of(&path)?, key)));
    }
    let spec = job.model.checkpoint.spec();
    let matrix = match &job.evidence {
        Loaded::None => return Ok(None),
        Loaded::Stats(stats) => Imatrix::from_stats(stats, spec),
        Loaded::Importance(_) => Imatrix::read_all(&job.options.calibration.imatrix, DEFAULT_CHUNK_SIZE)?,
        Loaded::Windows(set) => {
            let gathered = gather(&job.model.checkpoint, &set.windows, Detail::Channels, job.context)?;
            let stats = Stats { meta: stats_meta(&job.model.name, set, gathered.peak), sites: gathered.sites };
            Imatrix::from_stats(&stats, spec)
        }
    };
    matrix.write(&path, Layout::Gguf)?;
    Ok(Some((InputFile::of(&path)?, key)))
}

fn readme(job: &Job<'_>, entries: &[Entry], chat: Option<&Chat>, imatrix: Option<&str>) -> String {
    let model = job.model;
    let sees = model.checkpoint.tower().is_some();
    let quantized = entries.iter().any(|e| e.manifest.bpw < 16.0);
    let tags: &[&str] = if imatrix.is_some() { &["imatrix"] } else { &[] };
    let card = Card { about: &model.about, sees, quantized, publisher: job.options.publisher.as_deref(), tags };
    let mut body = format!("{} as GGUF files for llama.cpp, Ollama and LM Studio.\n\n## Files\n\n", card.origin());
    body += &table(entries);
    for companion in entries.iter().flat_map(|e| &e.manifest.companions).fold(Vec::new(), |mut list, c| {
        if !list.contains(&c) {
            list.push(c);
        }
        list
    }) {
        let what = match companion.kind.as_str() {
            "mmproj" => "the projector by which runtimes see images; it belongs to every file above",
            _ => "layers for multi-token prediction",
        };
        let _ = writeln!(body, "\n`{}`: {what}.", companion.file);
    }
    if let Some(name) = imatrix {
        let _ =
            writeln!(body, "\n`{name}`: importance matrix of the calibration text, for making more of them with llama-quantize.");
    }
    let _ = write!(body, "\n## Which file should I choose?\n\n{}", advice(entries));
    body += "\n## Run\n\n```sh\n";
    if let Some(usual) = recommended(entries) {
        let _ = writeln!(body, "llama-cli -m {}", usual.file);
    }
    let name = model.about.name.to_lowercase();
    let _ = writeln!(body, "ollama create {name} -f Modelfile && ollama run {name}\n```");
    body += "\nLM Studio: put the folder below `~/.lmstudio/models/<publisher>/`.\n";
    if let Some(prompt) = prompt(job).filter(|_| chat.is_some()) {
        let _ = write!(body, "\n## Prompt format\n\n````\n{}\n````\n", prompt.trim_end_matches('\n'));
    }
    let _ = write!(body, "\n## How it was made\n\n{}", origin(entries));
    card.render(&Kind::gguf(), &body)
}

/// A short conversation as the model's template writes it.
fn prompt(job: &Job<'_>) -> Option<String> {
    use bitsmith_runtime::tokenizer::ChatMessage;
    let tokenizer = job.model.tokenizer().ok().filter(|t| t.chat_template().is_some())?;
    let turns = [ChatMessage::new("system", "{system prompt}"), ChatMessage::new("user", "{prompt}")];
    tokenizer.render_timeless(&turns, true).or_else(|_| tokenizer.render_timeless(&turns[1..], true)).ok()
}

/// LM Studio's description of the model.
fn model_yaml(job: &Job<'_>, publisher: &str, entries: &[Entry]) -> String {
    let (about, spec) = (&job.model.about, job.model.checkpoint.spec());
    let repo = format!("{}-GGUF", about.name);
    let least = entries.iter().map(|e| e.manifest.bytes).min().unwrap_or(0);
    let mut out = format!(
        "model: {}\nbase:\n  - key: {}\n    sources:\n      - type: huggingface\n        user: {}\n        repo: {}\n",
        yaml(&format!("{publisher}/{}", about.name.to_lowercase())),
        yaml(&format!("{publisher}/{}", repo.to_lowercase())),
        yaml(publisher),
        yaml(&repo),
    );
    let _ = write!(
        out,
        "metadataOverrides:\n  domain: llm\n  architectures:\n    - {}\n  compatibilityTypes:\n    - gguf\n  paramsStrings:\n    - {}\n  \
         minMemoryUsageBytes: {least}\n  contextLengths:\n    - {}\n  vision: {}\n",
        yaml(spec.arch.name),
        yaml(&bitsmith_convert::names::size_label(spec.n_weights())),
        spec.context_length,
        job.model.checkpoint.tower().is_some(),
    );
    out
}
