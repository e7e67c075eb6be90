//! A user's own task: a TOML file with a Jinja prompt over records.
//!
//! ```toml
//! name = "capitals"
//! data = "capitals.jsonl"              # beside this file; or [hub] with repo, config, split
//! prompt = "Question: {{ question }}\nAnswer:"
//! choices = "options"                  # an expression over the record: a list of texts
//! answer = "gold"                      # an expression: an index, or one of the texts
//! ```
//!
//! Without `choices` the answer is a text, scored as a continuation; with `max-tokens` the model writes until one of `until`.

use super::item::Item;
use super::{Extract, Generation, Match, Metric, Source, Task};
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::template;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    name: String,
    #[serde(default)]
    description: String,
    data: Option<PathBuf>,
    shots: Option<PathBuf>,
    hub: Option<Hub>,
    #[serde(default)]
    header: String,
    prompt: String,
    choices: Option<String>,
    answer: String,
    delimiter: Option<String>,
    metrics: Option<Vec<String>>,
    #[serde(default)]
    fewshot: usize,
    #[serde(default)]
    first_shots: bool,
    max_tokens: Option<usize>,
    #[serde(default)]
    until: Vec<String>,
    extract: Option<String>,
    #[serde(default)]
    extract_last: bool,
    #[serde(default)]
    ignore: Vec<String>,
    #[serde(default)]
    ignore_case: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Hub {
    repo: String,
    #[serde(default = "default_config")]
    config: String,
    split: String,
    shots: Option<String>,
}

fn default_config() -> String {
    "default".into()
}

/// The task of a TOML file.
pub fn read(path: &Path) -> Result<Task> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::read(path, e))?;
    parse(&text, path.parent().unwrap_or(Path::new(""))).map_err(|e| e.file(path))
}

fn parse(text: &str, folder: &Path) -> Result<Task> {
    let file: File = toml::from_str(text).map_err(|e| Error::usage(format!("not a task: {}", e.message())))?;
    if file.name.is_empty() || file.name.contains([',', '/', '\\']) {
        return Err(Error::usage(format!("`{}` cannot be a task's name", file.name)));
    }
    let source = match (&file.data, file.hub) {
        (Some(data), None) => Source::Files { data: folder.join(data), shots: file.shots.as_ref().map(|s| folder.join(s)) },
        (None, Some(hub)) => Source::Hub { repo: hub.repo, config: hub.config, split: hub.split, shots: hub.shots },
        _ => return Err(Error::usage("a task has either `data` or a table `hub`")),
    };
    let generation = file.max_tokens.map(|max_tokens| Generation { until: file.until.clone(), max_tokens });
    if generation.is_some() && file.choices.is_some() {
        return Err(Error::usage("`choices` and `max-tokens` exclude each other"));
    }
    if generation.is_none() && (file.extract.is_some() || !file.until.is_empty() || !file.ignore.is_empty() || file.ignore_case) {
        return Err(Error::usage("`until`, `extract`, `ignore` and `ignore-case` are for written answers: give `max-tokens`"));
    }
    let rule = Match {
        filter: "none".into(),
        extract: file.extract.map(|pattern| Extract { pattern, last: file.extract_last }),
        ignore: file.ignore,
        ignore_case: file.ignore_case,
    };
    super::score::Patterns::new(&rule)?;
    let metrics = metrics(file.metrics.as_deref(), file.choices.is_some(), generation.is_some(), rule)?;
    let (prompt, choices, answer, writes) = (file.prompt, file.choices, file.answer, generation.is_some());
    let definition = serde_json::json!([prompt, choices, answer]).to_string();
    let reader = move |record: &Value| item(record, &prompt, choices.as_deref(), &answer, writes);
    Ok(Task {
        source,
        header: file.header,
        shots: file.fewshot,
        first_shots: file.first_shots,
        delimiter: file.delimiter.unwrap_or_else(|| " ".into()),
        generation,
        definition,
        ..Task::new(&file.name, &file.description, &metrics, reader)
    })
}

fn metrics(names: Option<&[String]>, choices: bool, writes: bool, rule: Match) -> Result<Vec<Metric>> {
    let known: Vec<Metric> = match (choices, writes) {
        (true, _) => vec![Metric::Acc, Metric::AccNorm],
        (_, true) => vec![Metric::ExactMatch(rule)],
        _ => vec![Metric::Acc, Metric::Perplexity],
    };
    let Some(names) = names else { return Ok(known) };
    let find = |name: &String| {
        known.iter().find(|m| m.key() == name).cloned().ok_or_else(|| {
            let known = known.iter().map(Metric::key).collect::<Vec<_>>().join(", ");
            Error::usage(format!("the metric `{name}` is not one of such a task: {known}"))
        })
    };
    match names.is_empty() {
        true => Err(Error::usage("`metrics` names none")),
        false => names.iter().map(find).collect(),
    }
}

fn item(record: &Value, prompt: &str, choices: Option<&str>, answer: &str, writes: bool) -> Result<Item> {
    let query = template::render(prompt, record)?;
    let answer = template::evaluate(answer, record)?;
    let text = match &answer {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    let Some(choices) = choices else {
        return Ok(match writes {
            true => Item::Writing { query, answer: text },
            // White space between question and answer belongs to the answer.
            false => Item::Continuation { query, answer: format!(" {}", text.trim_start()) },
        });
    };
    let list = template::evaluate(choices, record)?;
    let list: Option<Vec<String>> =
        list.as_array().map(|l| l.iter().map(|v| v.as_str().map(String::from)).collect()).unwrap_or_default();
    let list = list.ok_or_else(|| Error::usage(format!("`{choices}` is not a list of texts")))?;
    let right = match answer.as_u64() {
        Some(index) => index as usize,
        None => list
            .iter()
            .position(|c| *c == text)
            .ok_or_else(|| Error::corrupt(format!("the answer `{text}` is none of the choices")))?,
    };
    Item::choice(query, list, right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CHOICES: &str = "name = 'c'\ndata = 'c.jsonl'\nprompt = 'Q: {{ q }}\\nA:'\nchoices = 'o.text'\nanswer = 'gold'\n";

    #[test]
    fn kinds_of_tasks() {
        let task = parse(CHOICES, Path::new("dir")).unwrap();
        assert_eq!(task.source, Source::Files { data: "dir/c.jsonl".into(), shots: None });
        let record = |gold: Value| json!({"q": "x", "o": {"text": ["a", "b"]}, "gold": gold});
        let items = task.items(&[record(json!(1)), record(json!("b"))]).unwrap();
        assert_eq!(items[0], items[1]);
        assert_eq!(items[0].example(), ("Q: x\\nA:", "b"));
        assert!(task.items(&[record(json!("z"))]).unwrap_err().message.contains("c, record 1: the answer `z`"));

        let written = "name = 'w'\ndata = 'c.jsonl'\nprompt = '{{ q }}'\nanswer = 'n'\nmax-tokens = 8\nuntil = [\"\\n\"]\nextract = '\\d+'\n";
        let task = parse(written, Path::new("")).unwrap();
        let items = task.items(&[json!({"q": "2+2=", "n": 4})]).unwrap();
        assert_eq!(items, [Item::Writing { query: "2+2=".into(), answer: "4".into() }]);
        let answers = [super::super::Answer::Text(" 4 apples, 5 pears".into())];
        assert_eq!(task.score(&items, &answers).unwrap()[0].values, [1.0]);

        let continued = "name = 'k'\ndata = 'c.jsonl'\nprompt = '{{ q }}'\nanswer = 'n'\nmetrics = ['perplexity']\n";
        let task = parse(continued, Path::new("")).unwrap();
        assert_eq!(
            task.items(&[json!({"q": "a", "n": "b"})]).unwrap(),
            [Item::Continuation { query: "a".into(), answer: " b".into() }]
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (change, says) in [
            ("nonsense = 1\n", "nonsense"),
            ("metrics = ['bleu']\n", "`bleu`"),
            ("metrics = []\n", "names none"),
            ("max-tokens = 3\n", "exclude each other"),
            ("until = ['x']\n", "max-tokens"),
            ("[hub]\nrepo = 'a/b'\nsplit = 'test'\n", "either"),
        ] {
            let e = parse(&format!("{CHOICES}{change}"), Path::new("")).unwrap_err();
            assert!(e.message.contains(says), "{change}: {e}");
        }
        assert!(parse("name = 'a,b'\ndata='x'\nprompt=''\nanswer='a'", Path::new("")).unwrap_err().message.contains("name"));
    }
}
