//! `.eval_results/*.yaml`: scores in tasks, where the hub looks for them.

use super::card::Entry;
use bitsmith_convert::yaml;

/// Tasks and the hub's datasets that they are.
const DATASETS: [(&str, &str); 14] = [
    ("arc_challenge", "allenai/ai2_arc"),
    ("arc_easy", "allenai/ai2_arc"),
    ("boolq", "google/boolq"),
    ("copa", "aps/super_glue"),
    ("gsm8k", "openai/gsm8k"),
    ("hellaswag", "Rowan/hellaswag"),
    ("lambada_openai", "EleutherAI/lambada_openai"),
    ("mmlu", "cais/mmlu"),
    ("mmlu_pro", "TIGER-Lab/MMLU-Pro"),
    ("openbookqa", "allenai/openbookqa"),
    ("piqa", "ybisk/piqa"),
    ("sciq", "allenai/sciq"),
    ("truthfulqa_mc2", "truthfulqa/truthful_qa"),
    ("winogrande", "allenai/winogrande"),
];

/// File names and contents: one file for every artifact and task that the hub has a dataset of.
pub fn files(entries: &[Entry]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    for entry in entries {
        for score in entry.quality.iter().flat_map(|q| &q.tasks) {
            let Some((_, dataset)) = DATASETS.iter().find(|(task, _)| *task == score.task) else { continue };
            let notes = format!("{}, {} over {} items, standard error {:.4}", entry.file, score.metric, score.n, score.stderr);
            let text = format!(
                "- dataset:\n    id: {dataset}\n    task_id: {}\n  value: {}\n  notes: {}\n",
                score.task,
                score.value,
                yaml(&notes)
            );
            out.push((format!("{}_{}.yaml", score.task, entry.encoding.to_lowercase()), text));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::manifest;
    use serde_json::json;

    #[test]
    fn scores_by_dataset() {
        let mut manifest = manifest("gguf:q4_k_m");
        let task = |name: &str| json!({"task": name, "n": 100, "metric": "acc_norm", "value": 0.512, "stderr": 0.05});
        manifest.quality = Some(json!({"model": "m", "perplexity": [], "kld": [], "tasks": [task("hellaswag"), task("my own")]}));
        let files = files(&[Entry::new("m-Q4_K_M.gguf".into(), manifest)]);
        assert_eq!(files.len(), 1);
        assert_eq!(files[0].0, "hellaswag_q4_k_m.yaml");
        assert!(files[0].1.contains("id: Rowan/hellaswag\n") && files[0].1.contains("value: 0.512\n"), "{}", files[0].1);
    }
}
