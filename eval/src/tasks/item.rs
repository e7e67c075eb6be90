//! A record of a task, made into a question.

use bitsmith_formats::{Error, Result};
use serde_json::Value;

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Which of several texts goes on best.
    Choices {
        /// What they go on from.
        query: String,
        /// The texts.
        choices: Vec<String>,
        /// Indices of those that are right.
        right: Vec<usize>,
    },
    /// Which of several beginnings goes best with the rest of a sentence.
    Beginnings {
        /// The beginnings.
        queries: Vec<String>,
        /// How the sentence goes on.
        rest: String,
        /// Index of the right beginning.
        right: usize,
    },
    /// Whether the model would go on like this, with no alternatives given.
    Continuation {
        /// What it goes on from.
        query: String,
        /// How, with the white space before it.
        answer: String,
    },
    /// A text that the model is to write.
    Writing {
        /// What it goes on from.
        query: String,
        /// What it is held against.
        answer: String,
    },
}

impl Item {
    /// A question with one right answer.
    pub fn choice(query: String, choices: Vec<String>, right: usize) -> Result<Self> {
        if choices.len() < 2 || right >= choices.len() {
            return Err(Error::corrupt(format!("answer {right} of {} choices", choices.len())));
        }
        Ok(Item::Choices { query, choices, right: vec![right] })
    }

    /// Question and answer, as an example for others; what stands between them is up to the task.
    pub fn example(&self) -> (&str, &str) {
        match self {
            Item::Choices { query, choices, right } => (query, &choices[right[0]]),
            Item::Beginnings { queries, rest, right } => (&queries[*right], rest),
            Item::Continuation { query, answer } | Item::Writing { query, answer } => (query, answer),
        }
    }
}

/// Reading fields of a record; errors name the field.
pub trait Fields {
    /// A field, if the record has it.
    fn find(&self, name: &str) -> Option<&Value>;
    /// A field.
    fn field(&self, name: &str) -> Result<&Value>;
    /// A field of text.
    fn text(&self, name: &str) -> Result<&str>;
    /// A field with a list of texts.
    fn texts(&self, name: &str) -> Result<Vec<String>>;
    /// A field with a number that is not negative, perhaps written as text or as a truth value.
    fn index(&self, name: &str) -> Result<usize>;
}

impl Fields for Value {
    fn find(&self, name: &str) -> Option<&Value> {
        self.get(name).filter(|v| !v.is_null())
    }

    fn field(&self, name: &str) -> Result<&Value> {
        self.find(name).ok_or_else(|| {
            let names = self.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect::<Vec<_>>().join(", ");
            Error::corrupt(format!("no field `{name}`; there are {names}"))
        })
    }

    fn text(&self, name: &str) -> Result<&str> {
        self.field(name)?.as_str().ok_or_else(|| Error::corrupt(format!("field `{name}` is not text")))
    }

    fn texts(&self, name: &str) -> Result<Vec<String>> {
        let list: Option<Option<Vec<String>>> =
            self.field(name)?.as_array().map(|l| l.iter().map(|v| v.as_str().map(String::from)).collect());
        list.flatten().ok_or_else(|| Error::corrupt(format!("field `{name}` is not a list of texts")))
    }

    fn index(&self, name: &str) -> Result<usize> {
        let index = match self.field(name)? {
            Value::Number(n) => n.as_u64().map(|n| n as usize),
            Value::Bool(b) => Some(usize::from(*b)),
            Value::String(s) => s.trim().parse().ok(),
            _ => None,
        };
        index.ok_or_else(|| Error::corrupt(format!("field `{name}` is not an index")))
    }
}

/// Records that are questions already: `query`, `choices` and `gold`. The query is given as it is.
pub fn prepared(record: &Value) -> Result<Option<(&str, Vec<String>, usize)>> {
    if record.find("query").is_none() || record.find("gold").is_none() {
        return Ok(None);
    }
    Ok(Some((record.text("query")?, record.texts("choices")?, record.index("gold")?)))
}

/// The place of an answer's label (`A`, or `1`) among the labels.
pub fn labelled(labels: &[String], answer: &str) -> Result<usize> {
    let at = labels.iter().position(|l| l == answer);
    at.ok_or_else(|| Error::corrupt(format!("the answer `{answer}` is none of {}", labels.join(", "))))
}
