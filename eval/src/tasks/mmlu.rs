//! MMLU (Hendrycks et al., 2021): exams in 57 subjects, in four groups.

use super::item::{Fields, Item, labelled};
use super::{Metric, Source, Task};
use bitsmith_formats::{Error, Result};
use serde_json::Value;

/// Groups and their subjects.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "mmlu_stem",
        &[
            "abstract_algebra",
            "anatomy",
            "astronomy",
            "college_biology",
            "college_chemistry",
            "college_computer_science",
            "college_mathematics",
            "college_physics",
            "computer_security",
            "conceptual_physics",
            "electrical_engineering",
            "elementary_mathematics",
            "high_school_biology",
            "high_school_chemistry",
            "high_school_computer_science",
            "high_school_mathematics",
            "high_school_physics",
            "high_school_statistics",
            "machine_learning",
        ],
    ),
    (
        "mmlu_other",
        &[
            "business_ethics",
            "clinical_knowledge",
            "college_medicine",
            "global_facts",
            "human_aging",
            "management",
            "marketing",
            "medical_genetics",
            "miscellaneous",
            "nutrition",
            "professional_accounting",
            "professional_medicine",
            "virology",
        ],
    ),
    (
        "mmlu_social_sciences",
        &[
            "econometrics",
            "high_school_geography",
            "high_school_government_and_politics",
            "high_school_macroeconomics",
            "high_school_microeconomics",
            "high_school_psychology",
            "human_sexuality",
            "professional_psychology",
            "public_relations",
            "security_studies",
            "sociology",
            "us_foreign_policy",
        ],
    ),
    (
        "mmlu_humanities",
        &[
            "formal_logic",
            "high_school_european_history",
            "high_school_us_history",
            "high_school_world_history",
            "international_law",
            "jurisprudence",
            "logical_fallacies",
            "moral_disputes",
            "moral_scenarios",
            "philosophy",
            "prehistory",
            "professional_law",
            "world_religions",
        ],
    ),
];

/// All subjects.
pub fn tasks() -> Vec<Task> {
    let of = |group: &'static str, subject: &str| Task {
        source: Source::hub("cais/mmlu", subject, "test", Some("dev")),
        groups: vec![group.to_string(), "mmlu".to_string()],
        files: vec![subject.to_string(), format!("mmlu/{subject}")],
        header: format!("The following are multiple choice questions (with answers) about {}.\n\n", subject.replace('_', " ")),
        first_shots: true,
        ..Task::new(&format!("mmlu_{subject}"), "an exam; the letter of one of four choices", &[Metric::Acc], item)
    };
    GROUPS.iter().flat_map(|(group, subjects)| subjects.iter().map(|s| of(group, s))).collect()
}

fn item(record: &Value) -> Result<Item> {
    let letters = ["A", "B", "C", "D"].map(String::from).to_vec();
    let choices = match record.find("choices") {
        Some(_) => record.texts("choices")?,
        // The columns of the original tables.
        None => letters.iter().map(|l| record.text(l).map(String::from)).collect::<Result<_>>()?,
    };
    if choices.len() != letters.len() {
        return Err(Error::corrupt(format!("{} choices, expected 4", choices.len())));
    }
    let right = match record.text("answer") {
        Ok(letter) if letters.iter().any(|l| l == letter) => labelled(&letters, letter)?,
        _ => record.index("answer")?,
    };
    let mut query = format!("{}\n", record.text("question")?.trim());
    for (letter, choice) in letters.iter().zip(&choices) {
        query += &format!("{letter}. {choice}\n");
    }
    Item::choice(query + "Answer:", letters, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fifty_seven_subjects_and_both_kinds_of_rows() {
        assert_eq!(tasks().len(), 57);
        let hub = json!({"question": " 1+1? ", "choices": ["1", "2", "3", "4"], "answer": 1, "subject": "x"});
        let csv = json!({"question": "1+1?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "1"});
        let letter = json!({"question": "1+1?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"});
        let want = item(&hub).unwrap();
        assert_eq!((&item(&csv).unwrap(), &item(&letter).unwrap()), (&want, &want));
        assert_eq!(want.example(), ("1+1?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:", "B"));
    }
}
