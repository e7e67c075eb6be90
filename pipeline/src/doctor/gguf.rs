//! Faults of GGUF files.

use super::{DoctorOptions, Finding, Severity, fatal, mendable};
use bitsmith_convert::gguf::file_type;
use bitsmith_formats::gguf::{Array, GgufWriter, Header, MAGIC, Metadata, TensorPlan, Value, parse_header_of, set_paths};
use bitsmith_formats::{CodecId, Error, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Names of tokens that end a turn, in the order in which they are looked for.
const TURN_ENDS: [&str; 7] =
    ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eot|>", "<|endofturn|>", "<|END_OF_TURN_TOKEN|>"];

/// Keys that say which part of a set a file is, as the types that readers take them for.
const SPLIT: [&str; 3] = ["split.no", "split.count", "split.tensors.count"];

/// Bytes that are compared or copied at a time.
const CHUNK: usize = 8 << 20;

pub(super) fn examine(path: &Path, options: &DoctorOptions<'_>) -> Result<Vec<Finding>> {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut f| f.read_exact(&mut magic)).map_err(|e| Error::read(path, e))?;
    if magic != MAGIC {
        return Err(Error::unsupported("the doctor knows GGUF files and checkpoint folders, and this is neither").file(path));
    }
    let mut all = Vec::new();
    let files = set_paths(path);
    for (number, file) in files.iter().enumerate() {
        let header = match read_header(file) {
            Ok(header) => header,
            Err(e) => {
                all.push(fatal(file, "damaged-header", Severity::Error, e.message));
                continue;
            }
        };
        let mut mended = header.metadata.clone();
        let mut found = split(file, number, files.len(), &header, &mut mended);
        if number == 0 {
            found.extend(general(file, &header, &mut mended));
            found.extend(tokenizer(file, &header, &mut mended, options)?);
        }
        if options.fix && mended != header.metadata {
            rewrite(file, &header, &mended)?;
            found.iter_mut().filter(|f| f.remedy.is_some()).for_each(|f| f.fixed = true);
        }
        all.extend(found);
    }
    Ok(all)
}

/// Reads as much of a file as its header takes.
fn read_header(path: &Path) -> Result<Header> {
    let mut file = File::open(path).map_err(|e| Error::read(path, e))?;
    let len = file.metadata().map_err(|e| Error::read(path, e))?.len();
    let mut bytes = Vec::new();
    loop {
        let more = (bytes.len() as u64).max(1 << 20);
        (&mut file).take(more).read_to_end(&mut bytes).map_err(|e| Error::read(path, e))?;
        match parse_header_of(&bytes, len) {
            // The header may be longer than what was read.
            Err(_) if (bytes.len() as u64) < len => {}
            other => return other,
        }
    }
}

/// Which part of a set a file says that it is, beside what its name says.
fn split(file: &Path, number: usize, count: usize, header: &Header, mended: &mut Metadata) -> Vec<Finding> {
    let m = &header.metadata;
    let mut found = Vec::new();
    if count == 1 {
        if SPLIT.iter().any(|key| m.contains(key)) && m.optional("split.count", Metadata::u64).ok().flatten() != Some(1) {
            SPLIT.iter().for_each(|key| drop(mended.remove(key)));
            let message = "the file says that it is a part of a set, and is alone";
            found.push(mendable(file, "split-keys", Severity::Error, message, "removes the keys `split.*`"));
        }
        return found;
    }
    let wanted = [Value::U16(number as u16), Value::U16(count as u16)];
    for (key, value) in SPLIT.iter().zip(wanted) {
        if m.get(key) != Some(&value) {
            let has = m.get(key).map_or("nothing".to_string(), |v| format!("{} of type {}", v.to_json(), v.type_name()));
            let message = format!("`{key}` is {has}; by the file's name it is {} of type UINT16", value.to_json());
            mended.set(*key, value.clone());
            found.push(mendable(file, "split-keys", Severity::Error, message, format!("sets `{key}`")));
        }
    }
    found
}

/// Types and counts.
fn general(file: &Path, header: &Header, mended: &mut Metadata) -> Vec<Finding> {
    let m = &header.metadata;
    let mut found = Vec::new();
    if m.str("general.architecture").is_err() {
        found.push(fatal(
            file,
            "no-architecture",
            Severity::Error,
            "`general.architecture` is missing: no runtime knows what this is",
        ));
    }
    if m.str("general.type").is_ok_and(|t| t != "model") {
        return found;
    }
    let quantized = |t: &&bitsmith_formats::gguf::HeaderTensor| t.ty.codec().is_none_or(|c| c.float().is_none());
    if !m.contains("general.quantization_version") && header.tensors.iter().any(|t| quantized(&t)) {
        mended.set("general.quantization_version", 2u32);
        let message = "`general.quantization_version` is missing, though tensors are quantized";
        found.push(mendable(
            file,
            "quantization-version",
            Severity::Error,
            message,
            "sets it to 2, the version of all blocks since 2023",
        ));
    }
    if let Some((codec, number)) = usual_type(header) {
        let said = m.optional("general.file_type", Metadata::u64).ok().flatten();
        if said.is_none_or(|n| !may_be(n, codec, header)) {
            mended.set("general.file_type", number);
            let said = said.map_or("missing".into(), |n| n.to_string());
            let message = format!("`general.file_type` is {said}, and most weights are {codec}");
            found.push(mendable(file, "file-type", Severity::Warning, message, format!("sets it to {number}")));
        }
    }
    found
}

/// Whether a file of this content, most of it `usual`, may be called by this number. Mixes have tensors of many types, and others where
/// rows do not fit theirs; but a file is not called after a float if it is quantized, nor after a simple type that it does not have.
fn may_be(number: u64, usual: CodecId, header: &Header) -> bool {
    let is = |name: &str| file_type(name).map(u64::from) == Some(number);
    if ["f32", "f16", "bf16"].into_iter().any(is) {
        return usual.float().is_some();
    }
    let simple = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"].into_iter().find(|name| is(name));
    let has = |name: &str| header.tensors.iter().any(|t| t.ty.codec().is_some_and(|c| c.to_string() == name));
    usual.float().is_none() && simple.is_none_or(has)
}

/// The type of the most weights, and llama.cpp's number for a file of it.
fn usual_type(header: &Header) -> Option<(CodecId, u32)> {
    let mut weights: BTreeMap<String, (usize, CodecId)> = BTreeMap::new();
    for t in header.tensors.iter().filter(|t| t.shape.len() > 1) {
        let codec = t.ty.codec()?;
        weights.entry(codec.to_string()).or_insert((0, codec)).0 += t.shape.iter().product::<usize>();
    }
    let (_, codec) = weights.into_values().max_by_key(|(n, _)| *n)?;
    let name = codec.to_string();
    // K types have numbers for mixes only; the small mix is the one with the least of other types.
    let number = file_type(&name).or_else(|| file_type(&format!("{name}_s")))?;
    Some((codec, number))
}

fn tokenizer(file: &Path, header: &Header, mended: &mut Metadata, options: &DoctorOptions<'_>) -> Result<Vec<Finding>> {
    let m = &header.metadata;
    let mut found = Vec::new();
    let model = m.str("tokenizer.ggml.model").ok();
    let Some(model) = model else {
        if m.str("general.type").unwrap_or("model") == "model" {
            found.push(fatal(
                file,
                "no-tokenizer",
                Severity::Error,
                "there is no tokenizer: no runtime can read text with this file",
            ));
        }
        return Ok(found);
    };
    let tokens = m.strings("tokenizer.ggml.tokens").unwrap_or_default();
    // What the source's files would give.
    let mut right = Metadata::new();
    if let Some(source) = options.source {
        let vocab = source.vocab()?;
        if vocab.tokens.len() > tokens.len() {
            return Err(Error::usage(format!("its vocabulary has {} tokens, the file {}", vocab.tokens.len(), tokens.len()))
                .file(source.checkpoint.path())
                .hint("name the model that the file was made of"));
        }
        vocab.write(&mut right);
    }
    let take = |mended: &mut Metadata, key: &str, fault, severity, message: String, hint: &str| match right.get(key) {
        Some(value) => {
            mended.set(key, value.clone());
            mendable(file, fault, severity, message, format!("takes `{key}` from the source"))
        }
        None => fatal(file, fault, severity, format!("{message}{hint}")),
    };

    // How text is cut.
    const PRE: &str = "tokenizer.ggml.pre";
    let pre = m.str(PRE).ok();
    let source_pre = right.str(PRE).ok().map(String::from);
    if model == "gpt2" {
        if let Some(name) = options.pre.as_deref().filter(|name| Some(*name) != pre) {
            mended.set(PRE, name);
            let message = format!("`{PRE}` is {}", pre.map_or("missing".into(), |p| format!("`{p}`")));
            found.push(mendable(file, "pre-tokenizer", Severity::Error, message, format!("sets it to `{name}`")));
        } else if options.pre.is_none() && pre.is_none_or(|p| p == "default") {
            let message = format!("`{PRE}` is missing: runtimes cut text in a way that the model was not trained with");
            found.push(take(
                mended,
                PRE,
                "pre-tokenizer",
                Severity::Error,
                message,
                "; name the model with --source, or the value with --pre",
            ));
        } else if let (Some(said), Some(other)) = (pre, &source_pre)
            && said != other
            && !same_cutting(said, other)
        {
            let message = format!("`{PRE}` is `{said}`, the source's text is cut as `{other}`");
            found.push(take(mended, PRE, "pre-tokenizer", Severity::Error, message, ""));
        }
    }

    // Lists of the same length.
    for key in ["tokenizer.ggml.token_type", "tokenizer.ggml.scores"] {
        if let Some(list) = m.get(key).and_then(Value::as_array).map(Array::len).filter(|n| *n != tokens.len()) {
            let message = format!("`{key}` has {list} entries for {} tokens", tokens.len());
            found.push(fatal(file, "token-lists", Severity::Error, message));
        }
    }
    let rows = header.tensors.iter().find(|t| t.name == "token_embd.weight").and_then(|t| t.shape.first().copied());
    if let Some(rows) = rows.filter(|rows| *rows != tokens.len()) {
        let message = format!("the vocabulary has {} tokens, the embedding {rows} rows", tokens.len());
        found.push(fatal(file, "vocabulary-size", Severity::Error, message));
    }

    // Ends.
    const EOS: &str = "tokenizer.ggml.eos_token_id";
    let eos = m.optional(EOS, Metadata::u64).ok().flatten();
    let decides = m.str("general.architecture").is_ok_and(|a| !a.contains("bert"));
    if decides && eos.is_none_or(|id| id as usize >= tokens.len()) {
        let message = match eos {
            Some(id) => format!("`{EOS}` is {id}, and there are {} tokens", tokens.len()),
            None => format!("`{EOS}` is missing: answers do not end"),
        };
        found.push(take(mended, EOS, "eos", Severity::Error, message, "; name the model with --source"));
    } else if let (Some(said), Ok(other)) = (eos, right.u64(EOS))
        && said != other
    {
        found.push(take(mended, EOS, "eos", Severity::Error, format!("`{EOS}` is {said}, the source has {other}"), ""));
    }
    const TEMPLATE: &str = "tokenizer.chat_template";
    let template = m.str(TEMPLATE).ok();
    if template.is_none() && !right.is_empty() && right.contains(TEMPLATE) {
        found.push(take(
            mended,
            TEMPLATE,
            "chat-template",
            Severity::Warning,
            "there is no chat template, and the source has one".into(),
            "",
        ));
    } else if template.is_none() && options.source.is_none() && tokens.iter().any(|t| TURN_ENDS.contains(&t.as_str())) {
        let message = "there is no chat template, though the vocabulary has tokens for turns; name the model with --source";
        found.push(fatal(file, "chat-template", Severity::Warning, message));
    }
    // The token by which the template ends an answer must end generation.
    const EOT: &str = "tokenizer.ggml.eot_token_id";
    if let Some(template) = template {
        let end = TURN_ENDS.iter().find(|end| template.contains(**end) && tokens.iter().any(|t| t == **end));
        let id = end.and_then(|end| tokens.iter().position(|t| t == end));
        let known = |key: &str| m.optional(key, Metadata::u64).ok().flatten().map(|id| id as usize);
        if let (Some(end), Some(id)) = (end, id.filter(|id| ![known(EOS), known(EOT)].contains(&Some(*id)))) {
            mended.set(EOT, id as u32);
            let message = format!("the chat template ends answers with `{end}`, which does not end generation");
            found.push(mendable(file, "end-of-turn", Severity::Warning, message, format!("sets `{EOT}` to {id}")));
        }
    }
    Ok(found)
}

/// Whether two names stand for the same way of cutting.
fn same_cutting(a: &str, b: &str) -> bool {
    use bitsmith_runtime::tokenizer::pre::by_name;
    matches!((by_name(a), by_name(b)), (Ok(a), Ok(b)) if a.splits == b.splits && a.ignore_merges == b.ignore_merges)
}

/// Writes a file anew with other metadata and the same tensors. It takes the old one's place when it is whole.
fn rewrite(path: &Path, header: &Header, metadata: &Metadata) -> Result<()> {
    let at = |e: std::io::Error| Error::read(path, e);
    let plans = header.tensors.iter().map(|t| TensorPlan::of_type(&t.name, t.ty, &t.shape)).collect::<Result<Vec<_>>>();
    let mut old = File::open(path).map_err(at)?;
    let writer = GgufWriter::create(path, metadata, plans.map_err(|e| e.file(path))?)?;
    let mut chunk = Vec::with_capacity(CHUNK);
    for t in &header.tensors {
        old.seek(SeekFrom::Start(t.range.start as u64)).map_err(at)?;
        for offset in (0..t.range.len()).step_by(CHUNK) {
            chunk.clear();
            (&mut old).take(CHUNK.min(t.range.len() - offset) as u64).read_to_end(&mut chunk).map_err(at)?;
            writer.write_at(&t.name, offset as u64, &chunk)?;
        }
    }
    writer.finish()
}
