//! Faults of checkpoint folders, MLX folders above all.

use super::{DoctorOptions, Finding, Severity, fatal, mendable};
use bitsmith_formats::atomic::{AtomicFile, write_file};
use bitsmith_formats::safetensors::INDEX_FILE;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::Tokenizer;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
/// Longest header that is read, as the format has it.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the length before a header.
const LENGTH_FIELD: u64 = 8;
/// Bytes that are copied at a time.
const CHUNK: usize = 8 << 20;

pub(super) fn examine(dir: &Path, options: &DoctorOptions<'_>) -> Result<Vec<Finding>> {
    let path = dir.join(CONFIG);
    let mut config = match json_file(&path) {
        Ok(config) => config,
        Err(e) => return Ok(vec![fatal(&path, "no-config", Severity::Error, e.message)]),
    };
    let is_mlx =
        config.contains_key("quantization") || config.get("quantization_config").is_some_and(|q| q.get("quant_method").is_none());
    let weights = weights(dir)?;
    if weights.is_empty() {
        return Ok(vec![fatal(dir, "no-weights", Severity::Error, "there are no safetensors files")]);
    }
    let (mut found, mut headers) = (Vec::new(), Vec::new());
    for file in &weights {
        match header(file) {
            Ok(header) => {
                found.extend(metadata(file, &header, is_mlx, options.fix)?);
                headers.push((file.clone(), header));
            }
            Err(e) => found.push(fatal(file, "damaged-header", Severity::Error, e.message)),
        }
    }
    found.extend(index(dir, &headers, options.fix)?);
    let mut of_config = quantization(&path, &mut config);
    of_config.extend(tokenizer(dir, &path, &mut config));
    if options.fix && of_config.iter().any(|f| f.remedy.is_some()) {
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::failed(e.to_string()))?;
        write_file(&path, text.as_bytes())?;
        of_config.iter_mut().filter(|f| f.remedy.is_some()).for_each(|f| f.fixed = true);
    }
    found.extend(of_config);
    Ok(found)
}

fn json_file(path: &Path) -> Result<Map<String, Value>> {
    let bytes = std::fs::read(path).map_err(|e| Error::read(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::corrupt(format!("not a JSON object: {e}")).file(path))
}

/// The folder's safetensors files, sorted.
fn weights(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| Error::read(dir, e))? {
        let path = entry.map_err(|e| Error::read(dir, e))?.path();
        if path.is_file() && path.extension().is_some_and(|e| e == "safetensors") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file's header.
fn header(path: &Path) -> Result<Map<String, Value>> {
    let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
    let mut length = [0; LENGTH_FIELD as usize];
    file.read_exact(&mut length).map_err(|e| Error::read(path, e))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Err(Error::corrupt(format!("a header of {length} bytes: not a safetensors file, or damaged")).file(path));
    }
    let mut json = Vec::new();
    file.take(length).read_to_end(&mut json).map_err(|e| Error::read(path, e))?;
    serde_json::from_slice(&json).map_err(|e| Error::corrupt(format!("the header is no JSON object: {e}")).file(path))
}

/// Loaders ask the header which framework wrote the file: without an answer LM Studio and transformers refuse it.
fn metadata(path: &Path, header: &Map<String, Value>, is_mlx: bool, fix: bool) -> Result<Vec<Finding>> {
    let format = if is_mlx { "mlx" } else { "pt" };
    let message = match header.get("__metadata__").map(|m| m.get("format").and_then(Value::as_str)) {
        None => "the header has no `__metadata__`: LM Studio and transformers refuse the file".to_string(),
        Some(None) => "`__metadata__` names no format: transformers refuses the file".to_string(),
        Some(Some("pt")) if is_mlx => "an MLX file says that it is PyTorch's: LM Studio refuses it".to_string(),
        Some(Some(_)) => return Ok(Vec::new()),
    };
    let mut finding =
        mendable(path, "header-metadata", Severity::Error, message, format!("writes format `{format}` into the header"));
    if fix {
        let mut mended = Map::new();
        let mut metadata = header.get("__metadata__").and_then(Value::as_object).cloned().unwrap_or_default();
        metadata.insert("format".into(), format.into());
        mended.insert("__metadata__".into(), metadata.into());
        mended.extend(header.iter().filter(|(k, _)| *k != "__metadata__").map(|(k, v)| (k.clone(), v.clone())));
        rewrite(path, &mended)?;
        finding.fixed = true;
    }
    Ok(vec![finding])
}

/// Writes a file anew with another header and the same data, whose offsets count from the header's end.
fn rewrite(path: &Path, header: &Map<String, Value>) -> Result<()> {
    let at = |e: std::io::Error| Error::read(path, e);
    let mut old = File::open(path).map_err(at)?;
    let mut length = [0; LENGTH_FIELD as usize];
    old.read_exact(&mut length).map_err(at)?;
    let start = LENGTH_FIELD + u64::from_le_bytes(length);
    let data = old.metadata().map_err(at)?.len().saturating_sub(start);
    old.seek(SeekFrom::Start(start)).map_err(at)?;

    let mut json = serde_json::to_vec(header).map_err(|e| Error::failed(e.to_string()))?;
    // Data begin at a multiple of eight bytes.
    json.resize(json.len().next_multiple_of(8), b' ');
    let new = AtomicFile::create(path)?;
    let mut offset = LENGTH_FIELD + json.len() as u64;
    new.reserve(offset + data)?;
    new.write_all_at(&(json.len() as u64).to_le_bytes(), 0)?;
    new.write_all_at(&json, LENGTH_FIELD)?;
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        (&mut old).take(CHUNK as u64).read_to_end(&mut chunk).map_err(at)?;
        if chunk.is_empty() {
            return new.commit();
        }
        new.write_all_at(&chunk, offset)?;
        offset += chunk.len() as u64;
    }
}

/// The index must name every tensor's file. MLX's loaders take what lies there; others need it for more than one file.
fn index(dir: &Path, headers: &[(PathBuf, Map<String, Value>)], fix: bool) -> Result<Vec<Finding>> {
    let path = dir.join(INDEX_FILE);
    let name = |file: &Path| file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mut map, mut total) = (Map::new(), 0);
    for (file, header) in headers {
        for (tensor, entry) in header.iter().filter(|(k, _)| *k != "__metadata__") {
            let offsets = |i: usize| entry["data_offsets"][i].as_u64().unwrap_or(0);
            total += offsets(1).saturating_sub(offsets(0));
            map.insert(tensor.clone(), name(file).into());
        }
    }
    map.sort_keys();
    let message = match path.is_file() {
        false if headers.len() > 1 => "the weights are in several files, and there is no index".to_string(),
        false => return Ok(Vec::new()),
        true => {
            let listed = json_file(&path).ok().and_then(|i| i.get("weight_map").and_then(Value::as_object).cloned());
            let Some(listed) = listed else {
                return Ok(vec![fatal(&path, "index", Severity::Error, "the index cannot be read")]);
            };
            let absent = listed.values().filter_map(Value::as_str).find(|file| !headers.iter().any(|(f, _)| name(f) == *file));
            if let Some(absent) = absent {
                return Ok(vec![fatal(
                    &path,
                    "missing-file",
                    Severity::Error,
                    format!("the index names {absent}, which is not here"),
                )]);
            }
            match map.iter().find(|(tensor, file)| listed.get(*tensor) != Some(file)) {
                None if listed.len() == map.len() => return Ok(Vec::new()),
                None => "the index names tensors that no file has".to_string(),
                Some((tensor, _)) => format!("the index is wrong about `{tensor}`"),
            }
        }
    };
    let mut finding = mendable(&path, "index", Severity::Error, message, "writes the index anew from the files' headers");
    if fix {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        let text = serde_json::to_string_pretty(&index).map_err(|e| Error::failed(e.to_string()))?;
        write_file(&path, text.as_bytes())?;
        finding.fixed = true;
    }
    Ok(vec![finding])
}

/// MLX's block of quantization stands under two keys, as readers look for one or the other.
fn quantization(path: &Path, config: &mut Map<String, Value>) -> Vec<Finding> {
    let (own, other) = (config.get("quantization").cloned(), config.get("quantization_config").cloned());
    let (key, block) = match (own, other) {
        (Some(own), None) => ("quantization_config", own),
        (None, Some(other)) if other.get("quant_method").is_none() && other.get("group_size").is_some() => {
            ("quantization", other)
        }
        _ => return Vec::new(),
    };
    config.insert(key.into(), block);
    let message = format!("`{key}` is missing beside its twin: some readers take the weights for plain ones");
    vec![mendable(path, "quantization-block", Severity::Warning, message, format!("adds `{key}`"))]
}

fn tokenizer(dir: &Path, path: &Path, config: &mut Map<String, Value>) -> Vec<Finding> {
    let tokenizer = match Tokenizer::from_hf_folder(dir) {
        Ok(tokenizer) => tokenizer,
        Err(e) => {
            return vec![fatal(dir, "no-tokenizer", Severity::Error, format!("the tokenizer cannot be read: {}", e.message))];
        }
    };
    let mut found = Vec::new();
    if tokenizer.chat_template().is_none()
        && ["<|im_end|>", "<|eot_id|>", "<end_of_turn>"].iter().any(|t| tokenizer.id_of(t).is_some())
    {
        let message = "there is no chat template, though the vocabulary has tokens for turns";
        found.push(fatal(dir, "chat-template", Severity::Warning, message));
    }
    let said: Vec<u64> = match config.get("eos_token_id") {
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_u64).collect(),
        Some(value) => value.as_u64().into_iter().collect(),
        None => Vec::new(),
    };
    let out_of_range = said.iter().any(|id| *id >= tokenizer.vocab_size() as u64);
    let is_decoder = !config.get("model_type").and_then(Value::as_str).is_some_and(|t| t.contains("bert"));
    if is_decoder && (said.is_empty() || out_of_range) {
        let named = tokenizer.eos();
        let message = match out_of_range {
            true => format!("`eos_token_id` is {said:?}, and there are {} tokens", tokenizer.vocab_size()),
            false => "`eos_token_id` is missing: runtimes that read only this file do not know when to stop".to_string(),
        };
        let known: Vec<u32> = named.iter().copied().filter(|id| (*id as usize) < tokenizer.vocab_size()).collect();
        match &known[..] {
            [] => found.push(fatal(path, "eos", Severity::Error, message)),
            ids => {
                let value = if let [one] = ids { json!(one) } else { json!(ids) };
                found.push(mendable(path, "eos", Severity::Error, message, format!("sets it to {value}")));
                config.insert("eos_token_id".into(), value);
            }
        }
    }
    found
}
