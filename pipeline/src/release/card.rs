//! What a card says of the artifacts beside it: a table of what was measured, and which of them to choose.

use crate::manifest::Manifest;
use bitsmith_eval::EvalResult;
use std::fmt::Write as _;

/// One artifact of a card.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its file, or the first of its files.
    pub file: String,
    /// How many files it has.
    pub n_files: usize,
    /// Its encoding, as names have it: `Q4_K_M`.
    pub encoding: String,
    /// How it was made.
    pub manifest: Manifest,
    /// What was measured.
    pub quality: Option<EvalResult>,
}

/// Below this mean divergence, in nats per token, an artifact is taken for as good as its source.
const SAME: f64 = 0.001;
/// Below this one, for a good choice.
const GOOD: f64 = 0.02;

impl Entry {
    /// From a manifest that was read.
    pub fn new(file: String, manifest: Manifest) -> Entry {
        let quality = manifest.quality.clone().and_then(|q| serde_json::from_value(q).ok());
        let encoding = manifest.recipe.target.split_once(':').map_or("", |(_, e)| e).to_uppercase().replace('@', "-");
        Entry { file, n_files: manifest.files.len().max(1), encoding, manifest, quality }
    }

    fn kld(&self) -> Option<f64> {
        self.quality.as_ref()?.kld.first().map(|k| k.summary.mean)
    }
}

/// The artifact for whoever does not want to choose: the smallest that is close to the source; where nothing is close, or nothing was
/// measured, Q4_K_M if there is one, and otherwise the closest or the largest.
pub fn recommended(entries: &[Entry]) -> Option<&Entry> {
    let good = entries.iter().filter(|e| e.kld().is_some_and(|k| k < GOOD)).min_by_key(|e| e.manifest.bytes);
    let usual = || entries.iter().find(|e| e.manifest.recipe.target == "gguf:q4_k_m");
    let closest = || {
        entries
            .iter()
            .filter(|e| e.kld().is_some())
            .min_by(|a, b| a.kld().partial_cmp(&b.kld()).unwrap_or(std::cmp::Ordering::Equal))
    };
    good.or_else(usual).or_else(closest).or_else(|| entries.iter().max_by_key(|e| e.manifest.bytes))
}

/// The table of artifacts, the largest first, with a column for everything that was measured.
pub fn table(entries: &[Entry]) -> String {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|a, b| b.manifest.bytes.cmp(&a.manifest.bytes).then_with(|| a.file.cmp(&b.file)));
    let mut tasks: Vec<(&str, &str)> = Vec::new();
    for task in sorted.iter().filter_map(|e| e.quality.as_ref()).flat_map(|q| &q.tasks) {
        if !tasks.contains(&(&task.task, &task.metric)) {
            tasks.push((&task.task, &task.metric));
        }
    }
    let has_kld = sorted.iter().any(|e| e.kld().is_some());
    let has_ppl = sorted.iter().any(|e| e.quality.as_ref().is_some_and(|q| !q.perplexity.is_empty()));
    let mut heads = vec!["File".to_string(), "Type".into(), "Size".into(), "Bits per weight".into()];
    heads.extend(has_ppl.then(|| "Perplexity".to_string()));
    heads.extend(has_kld.then(|| ["Mean KLD", "99 % KLD", "Same top token"].map(String::from)).into_iter().flatten());
    heads.extend(tasks.iter().map(|(task, metric)| format!("{task} ({metric})")));
    heads.push("In words".into());
    let mut out = row(&heads) + &row(&heads.iter().map(|_| "---".to_string()).collect::<Vec<_>>());
    for e in sorted {
        let quality = e.quality.clone().unwrap_or_default();
        let absent = || "–".to_string();
        let parts = if e.n_files > 1 { format!(" ({} files)", e.n_files) } else { String::new() };
        let mut cells =
            vec![format!("`{}`{parts}", e.file), e.encoding.clone(), size(e.manifest.bytes), format!("{:.2}", e.manifest.bpw)];
        if has_ppl {
            cells.push(quality.perplexity.first().map_or_else(absent, |p| format!("{:.3} ± {:.3}", p.ppl, p.stderr)));
        }
        if has_kld {
            let kld = quality.kld.first().map(|k| &k.summary);
            cells.push(kld.map_or_else(absent, |k| format!("{:.5}", k.mean)));
            cells.push(kld.map_or_else(absent, |k| format!("{:.4}", k.p99)));
            cells.push(kld.map_or_else(absent, |k| format!("{:.2} %", 100.0 * k.same_top_p)));
        }
        for (task, metric) in &tasks {
            let found = quality.tasks.iter().find(|t| t.task == *task && t.metric == *metric);
            cells.push(found.map_or_else(absent, |t| format!("{:.4} ± {:.4}", t.value, t.stderr)));
        }
        cells.push(in_words(e).into());
        out += &row(&cells);
    }
    out + &measured_on(entries)
}

/// What the numbers mean.
fn measured_on(entries: &[Entry]) -> String {
    let Some(quality) = entries.iter().find_map(|e| e.quality.as_ref()) else { return String::new() };
    let mut out = String::new();
    if let Some(p) = quality.perplexity.first() {
        let _ = write!(out, "\nMeasured on {}: {} tokens scored in windows of {}, {} style", p.data, p.tokens, p.ctx, p.style);
        if let Some(k) = quality.kld.first() {
            let _ = write!(
                out,
                "; the source's perplexity is {:.3}. KLD is the divergence of next-token distributions from the source's, in nats per token; \
                 “same top token” counts how often both find the same token most likely",
                k.summary.ppl_against
            );
        }
        out += ".\n";
    }
    out
}

fn in_words(entry: &Entry) -> &'static str {
    match (entry.kld(), entry.manifest.bpw) {
        (Some(k), _) if k < SAME => "as good as the source",
        (Some(k), _) if k < 0.01 => "very close to the source",
        (Some(k), _) if k < 0.05 => "close to the source",
        (Some(k), _) if k < 0.2 => "a loss that can be noticed",
        (Some(_), _) => "a large loss",
        (None, bpw) if bpw > 12.0 => "not quantized",
        (None, bpw) if bpw > 7.5 => "hardly any loss expected; not measured",
        (None, bpw) if bpw > 4.2 => "a small loss expected; not measured",
        (None, _) => "a loss expected; not measured",
    }
}

/// “Which file should I choose?”
pub fn advice(entries: &[Entry]) -> String {
    let Some(usual) = recommended(entries) else { return String::new() };
    let mut out = format!(
        "The model must fit into memory with one or two gigabytes to spare for the context: into the GPU's for full speed, or into the \
         GPU's and the computer's together. Of the files that fit, take the largest.\n\n- Not sure? **`{}`** ({}): {}.\n",
        usual.file,
        size(usual.manifest.bytes),
        in_words(usual)
    );
    let best = entries.iter().filter(|e| e.kld().is_some_and(|k| k < SAME)).min_by_key(|e| e.manifest.bytes);
    if let Some(best) = best.filter(|b| b.file != usual.file) {
        let _ = writeln!(
            out,
            "- Memory to spare? `{}` ({}): {}; larger files gain nothing that was measurable.",
            best.file,
            size(best.manifest.bytes),
            in_words(best)
        );
    }
    if let Some(least) = entries.iter().min_by_key(|e| e.manifest.bytes).filter(|l| l.file != usual.file) {
        let _ = writeln!(out, "- Little memory? `{}` ({}): {}.", least.file, size(least.manifest.bytes), in_words(least));
    }
    out
}

/// How the artifacts were made.
pub fn origin(entries: &[Entry]) -> String {
    let Some(first) = entries.first().map(|e| &e.manifest) else { return String::new() };
    let mut methods: Vec<&str> = entries.iter().map(|e| e.manifest.recipe.method.as_str()).collect();
    methods.sort_unstable();
    methods.dedup();
    let commit = first.made.commit.as_deref().map_or(String::new(), |c| format!(" (commit {})", &c[..c.len().min(12)]));
    let calibration = match &first.recipe.calibration {
        None => "without calibration".to_string(),
        Some(c) => match (c["data"].as_str(), c["samples"].as_u64(), c["ctx"].as_u64()) {
            (Some(data), Some(samples), Some(ctx)) => format!("calibrated on {data}, {samples} windows of {ctx} tokens"),
            _ => "calibrated with statistics gathered earlier".to_string(),
        },
    };
    format!(
        "Made with bitsmith {}{commit} by method {}, {calibration}. `bitsmith.json` has the sources' hashes and every setting as an in-toto \
         statement: `bitsmith reproduce bitsmith.json` makes the files again and compares. `sha256sum -c SHA256SUMS` checks a download.\n",
        first.made.version,
        methods.join(", ")
    )
}

fn row(cells: &[String]) -> String {
    format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
}

/// Bytes as hubs and file managers show them.
pub fn size(bytes: u64) -> String {
    let n = bytes as f64;
    match n {
        n if n >= 1e9 => format!("{:.2} GB", n / 1e9),
        n if n >= 1e6 => format!("{:.1} MB", n / 1e6),
        n => format!("{:.0} kB", n / 1e3),
    }
}
