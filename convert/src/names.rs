//! Names of artifacts, and what a model's name tells about it.

use std::path::Path;

/// A model's name: the last part of its hub id, or of its path. A file of the hub's cache
/// (`models--ORG--NAME/snapshots/REVISION`) is named by its repository.
pub fn model_name(path: &Path, repo: Option<&str>) -> String {
    if let Some(name) = repo.and_then(|r| r.rsplit('/').next()).filter(|n| !n.is_empty()) {
        return name.to_string();
    }
    let parts: Vec<_> = path.components().rev().filter_map(|c| c.as_os_str().to_str()).collect();
    let cached = parts.iter().find_map(|p| p.strip_prefix("models--")).and_then(|p| p.rsplit("--").next());
    if let Some(name) = cached.filter(|n| !n.is_empty()) {
        return name.to_string();
    }
    let is_file = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors"));
    let own = if is_file { path.file_stem() } else { path.file_name() };
    match own.and_then(|n| n.to_str()) {
        Some(name) if !name.is_empty() => name.to_string(),
        // `.`, `..` or nothing: ask the file system where that is.
        _ => path.canonicalize().ok().and_then(|p| Some(p.file_name()?.to_str()?.to_string())).unwrap_or_else(|| "model".into()),
    }
}

/// `lab-5m`, `q4_k_m` → `lab-5m-Q4_K_M.gguf`.
pub fn gguf_file(model: &str, encoding: &str) -> String {
    format!("{model}-{}.gguf", plain(encoding).to_uppercase())
}

/// A model's name as GGUF's naming convention has it, `Base-Size-FineTune-vVersion`: what the name does not say is added, and characters
/// that the convention has no place for become hyphens. `Llama-3.2-1B-Instruct` → `Llama-3-2-1B-Instruct-v1.0`.
pub fn spec_name(model: &str, n_weights: usize) -> String {
    let parts = name_parts(model);
    // The size stays as it is written: `8x7B`.
    let written = |label: &str| model.split(['-', '_', ' ']).find(|p| p.eq_ignore_ascii_case(label)).map(String::from);
    let size = parts.size_label.as_deref().and_then(written).unwrap_or_else(|| size_label(n_weights));
    let base = parts.basename.unwrap_or_else(|| model.to_string());
    let hyphens = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-', "-");
    let version = parts.version.map_or_else(|| "v1.0".to_string(), |v| v.to_lowercase());
    let finetune = parts.finetune.map(|f| format!("-{}", hyphens(&f))).unwrap_or_default();
    format!("{}-{size}{finetune}-{version}", hyphens(&base))
}

/// `lab-5m`, `bf16` → `mmproj-lab-5m-BF16.gguf`.
pub fn mmproj_file(model: &str, encoding: &str) -> String {
    format!("mmproj-{}", gguf_file(model, encoding))
}

/// `lab-5m-Q4_K_M.gguf` → `mtp-lab-5m-Q4_K_M.gguf`.
pub fn mtp_file(model_file: &str) -> String {
    format!("mtp-{model_file}")
}

/// `lab-5m`, `4bit` → `lab-5m-4bit`; the default group size (`4bit-g64`) is not spelled out.
pub fn mlx_folder(model: &str, encoding: &str) -> String {
    let encoding = plain(encoding).to_lowercase();
    format!("{model}-{}", encoding.strip_suffix("-g64").unwrap_or(&encoding))
}

/// `lab-5m`, `gptq`, `4bit-g128` → `lab-5m-gptq-4bit-g128`; `lab-5m`, `hf`, `bf16` → `lab-5m-hf-bf16`.
pub fn folder(model: &str, container: &str, encoding: &str) -> String {
    format!("{model}-{container}-{}", plain(encoding).to_lowercase())
}

/// Only what is safe in a file name: `auto@4.5bpw` → `auto-4.5bpw`.
fn plain(encoding: &str) -> String {
    encoding.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '-' }).collect()
}

/// The parts of a model's name, as `Base-Size-FineTune-vVersion` names them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameParts {
    /// `Llama-3.2`.
    pub basename: Option<String>,
    /// `1B`, as the name has it.
    pub size_label: Option<String>,
    /// `Instruct`.
    pub finetune: Option<String>,
    /// `v0.3`.
    pub version: Option<String>,
}

/// Takes a name apart. Without a size in it, nothing is known for sure and everything stays empty.
pub fn name_parts(name: &str) -> NameParts {
    let parts: Vec<&str> = name.split(['-', '_', ' ']).filter(|p| !p.is_empty()).collect();
    let Some(size) = parts.iter().position(|p| is_size(p)).filter(|&i| i > 0) else {
        return NameParts::default();
    };
    let version = parts.iter().skip(1).find(|p| is_version(p));
    let join = |list: &[&str]| {
        let kept: Vec<&str> = list.iter().copied().filter(|p| Some(p) != version).collect();
        (!kept.is_empty()).then(|| kept.join("-"))
    };
    NameParts {
        basename: join(&parts[..size]),
        size_label: Some(parts[size].to_uppercase()),
        finetune: join(&parts[size + 1..]),
        version: version.map(|v| v.to_string()),
    }
}

/// `7B`, `0.5b`, `8x7B`, `135M`.
fn is_size(part: &str) -> bool {
    let Some(number) = part.strip_suffix(['K', 'k', 'M', 'm', 'B', 'b', 'T', 't']) else { return false };
    let is_number = |s: &str| s.starts_with(|c: char| c.is_ascii_digit()) && s.parse::<f64>().is_ok();
    match number.split_once('x') {
        Some((experts, size)) => is_number(experts) && is_number(size),
        None => is_number(number),
    }
}

/// `v2`, `v0.3`.
fn is_version(part: &str) -> bool {
    part.strip_prefix(['v', 'V']).is_some_and(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

/// The size label of a number of weights, with at least two digits: `5.2M`, `135M`, `1.2B`.
pub fn size_label(n_weights: usize) -> String {
    let n = n_weights as f64;
    let (scaled, unit) = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")]
        .into_iter()
        .find(|(scale, _)| n >= *scale)
        .map_or((n / 1e3, "K"), |(scale, unit)| (n / scale, unit));
    let decimals = usize::from(scaled.round() < 10.0);
    format!("{scaled:.decimals$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_folders() {
        assert_eq!(gguf_file("Lab-5M", "q4_k_m"), "Lab-5M-Q4_K_M.gguf");
        assert_eq!(gguf_file("m", "auto@4.5bpw"), "m-AUTO-4.5BPW.gguf");
        assert_eq!(mlx_folder("Lab-5M", "4bit-g64"), "Lab-5M-4bit");
        assert_eq!(mlx_folder("Lab-5M", "4bit-g32"), "Lab-5M-4bit-g32");
        assert_eq!(mlx_folder("Lab-5M", "bf16"), "Lab-5M-bf16");
        assert_eq!(folder("Lab-5M", "gptq", "4bit-g128"), "Lab-5M-gptq-4bit-g128");
        assert_eq!(folder("Lab-5M", "hf", "bf16"), "Lab-5M-hf-bf16");
    }

    /// GGUF's specification tests names with this expression, but for look-aheads that these names do not need.
    const CONVENTION: &str = r"^[A-Za-z0-9\s]*(?:-(?:[A-Za-z\s][A-Za-z0-9\s]*|[0-9\s]*))*-(?:\d+x)?(?:\d+\.)?\d+[A-Za-z](?:-[A-Za-z0-9\s-]+)?-v\d+(?:\.\d+)*(?:-[\w_]+)?\.gguf$";

    #[test]
    fn names_by_the_convention() {
        let convention = fancy_regex::Regex::new(CONVENTION).unwrap();
        for (model, name) in [
            ("Llama-3.2-1B-Instruct", "Llama-3-2-1B-Instruct-v1.0-Q4_K_M.gguf"),
            ("Mistral-7B-Instruct-v0.3", "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf"),
            ("Mixtral-8x7B-v0.1", "Mixtral-8x7B-v0.1-Q4_K_M.gguf"),
            ("bitsmith-demo", "bitsmith-demo-2.9M-v1.0-Q4_K_M.gguf"),
            ("Qwen2.5-0.5B", "Qwen2-5-0.5B-v1.0-Q4_K_M.gguf"),
        ] {
            assert_eq!(gguf_file(&spec_name(model, 2_885_376), "q4_k_m"), name);
            assert!(convention.is_match(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn names_of_models() {
        assert_eq!(model_name(Path::new("/x/lab-5m"), None), "lab-5m");
        assert_eq!(model_name(Path::new("/x/lab-5m/"), Some("org/Lab-5M")), "Lab-5M");
        assert_eq!(model_name(Path::new("/x/lab.v1-Q4_K.gguf"), None), "lab.v1-Q4_K");
        assert_eq!(model_name(Path::new("/c/models--org--a-b/snapshots/0123abc"), None), "a-b");
        assert_ne!(model_name(Path::new("."), None), ".");
    }

    #[test]
    fn parts_of_names() {
        let p = name_parts("Llama-3.2-1B-Instruct");
        assert_eq!(
            (p.basename.as_deref(), p.size_label.as_deref(), p.finetune.as_deref()),
            (Some("Llama-3.2"), Some("1B"), Some("Instruct"))
        );
        let p = name_parts("Mistral-7B-Instruct-v0.3");
        assert_eq!(
            (p.basename.as_deref(), p.finetune.as_deref(), p.version.as_deref()),
            (Some("Mistral"), Some("Instruct"), Some("v0.3"))
        );
        assert_eq!(name_parts("Mixtral-8x7B-v0.1").size_label.as_deref(), Some("8X7B"));
        assert_eq!(name_parts("stories"), NameParts::default());
        assert_eq!(name_parts("7B"), NameParts::default());
    }

    #[test]
    fn size_labels() {
        for (n, label) in [
            (5_200_000, "5.2M"),
            (134_500_000, "134M"),
            (1_235_000_000, "1.2B"),
            (260_000, "260K"),
            (512, "0.5K"),
            (70_553_706_496, "71B"),
        ] {
            assert_eq!(size_label(n), label);
        }
    }
}
