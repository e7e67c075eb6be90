//! Items as texts for a model: header, examples, question; and texts as tokens. Both are put together as lm-evaluation-harness does.

use super::Task;
use super::item::Item;
use super::shots::PythonRandom;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::likelihood::Continuation;
use bitsmith_runtime::{ChatMessage, Tokenizer};

/// The harness's seed for drawing examples.
const SHOTS_SEED: u32 = 1234;

/// One thing to ask the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// How likely a continuation is.
    Likelihood {
        /// What stands before it.
        context: String,
        /// What is scored.
        continuation: String,
    },
    /// What the model writes.
    Writing {
        /// What it goes on from.
        prompt: String,
    },
}

/// Renders a conversation and the start of the model's turn.
pub type Chat<'a> = &'a dyn Fn(&[ChatMessage]) -> Result<String>;

/// What the model is asked for each item.
///
/// `pool` are the examples, of which `shots` stand before each question; with `own_pool` they are the items themselves, and no question is
/// its own example.
pub fn asks(
    task: &Task,
    items: &[Item],
    pool: &[Item],
    own_pool: bool,
    shots: usize,
    chat: Option<Chat<'_>>,
) -> Result<Vec<Vec<Ask>>> {
    let needed = shots + usize::from(own_pool && shots > 0);
    if pool.len() < needed {
        return Err(Error::usage(format!(
            "{}: {shots} examples are asked for, and there are {} records to take them from",
            task.name,
            pool.len()
        ))
        .hint("lower --fewshot, or give a file of examples"));
    }
    let mut random = PythonRandom::new(SHOTS_SEED);
    let mut out = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let drawn = match (shots, task.first_shots) {
            (0, _) => Vec::new(),
            (_, true) => (0..needed).collect(),
            (_, false) => random.sample(pool.len(), needed),
        };
        let examples = drawn.into_iter().filter(|j| !(own_pool && *j == i)).take(shots).map(|j| &pool[j]);
        out.push(ask(task, item, examples, chat)?);
    }
    Ok(out)
}

fn ask<'a>(task: &Task, item: &Item, examples: impl Iterator<Item = &'a Item>, chat: Option<Chat<'_>>) -> Result<Vec<Ask>> {
    let mut turns: Vec<(&str, &str, &str)> = Vec::new();
    if !task.header.is_empty() {
        turns.push(("system", &task.header, ""));
    }
    for example in examples {
        let (question, answer) = example.example();
        turns.extend([("user", question, task.delimiter.as_str()), ("assistant", answer, "\n\n")]);
    }
    let context = |query: &str| match chat {
        Some(render) => {
            let message = |(role, text, _): &(&str, &str, &str)| ChatMessage::new(*role, *text);
            render(&turns.iter().map(message).chain([ChatMessage::new("user", query)]).collect::<Vec<_>>())
        }
        None => Ok(turns.iter().flat_map(|(_, text, after)| [*text, *after]).chain([query]).collect()),
    };
    // A conversation's answer begins where the template ends.
    let delimiter = if chat.is_some() { "" } else { &task.delimiter };
    Ok(match item {
        Item::Choices { query, choices, .. } => {
            let context = context(query)?;
            let ask = |c: &String| Ask::Likelihood { context: context.clone(), continuation: format!("{delimiter}{c}") };
            choices.iter().map(ask).collect()
        }
        Item::Beginnings { queries, rest, .. } => {
            let ask = |q: &String| -> Result<Ask> {
                Ok(Ask::Likelihood { context: context(q)?, continuation: format!("{delimiter}{rest}") })
            };
            queries.iter().map(ask).collect::<Result<_>>()?
        }
        Item::Continuation { query, answer } => {
            vec![Ask::Likelihood { context: context(query)?, continuation: answer.clone() }]
        }
        Item::Writing { query, .. } => vec![Ask::Writing { prompt: context(query)? }],
    })
}

/// The tokens of a text, with those that the model expects around every text, unless it begins with them already.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let prefix = tokenizer.bos().or(tokenizer.eos().first().copied());
    let begun = prefix.and_then(|id| tokenizer.token(id)).is_some_and(|bos| !bos.is_empty() && text.starts_with(&bos));
    tokenizer.encode(text, !begun)
}

/// Context and continuation as tokens: cut together, so that the border falls where the tokens of the context alone end. White space
/// at the context's end goes to the continuation. What exceeds `longest` tokens is cut off at the start.
pub fn continuation(tokenizer: &Tokenizer, context: &str, continuation: &str, longest: usize) -> Result<Continuation> {
    let (mut tokens, mut from) = match context.is_empty() {
        true => {
            let prefix = tokenizer.bos().or(tokenizer.eos().first().copied());
            let tokens = tokenizer.encode(continuation, false)?;
            match prefix {
                Some(id) if tokens.first() != Some(&id) => ([&[id], tokens.as_slice()].concat(), 1),
                _ => (tokens, 1),
            }
        }
        false => {
            let head = context.trim_end();
            let whole = encode(tokenizer, &format!("{context}{continuation}"))?;
            (whole, encode(tokenizer, head)?.len())
        }
    };
    if tokens.len() <= from || from == 0 || tokens.len() - from > longest {
        let shown: String = continuation.chars().take(40).collect();
        return Err(Error::usage(format!(
            "the continuation `{shown}` has {} tokens after a context of {from}, and the model reads {longest}",
            tokens.len().saturating_sub(from)
        )));
    }
    let excess = tokens.len().saturating_sub(longest + 1);
    tokens.drain(..excess);
    from -= excess;
    Ok(Continuation { tokens, from })
}

/// The tokens of a prompt that leaves room for `max_tokens` more; what exceeds that is cut off at the start.
pub fn prompt(tokenizer: &Tokenizer, text: &str, max_tokens: usize, context_length: usize) -> Result<Vec<u32>> {
    let Some(room) = context_length.checked_sub(max_tokens).filter(|room| *room > 0) else {
        return Err(Error::usage(format!("{max_tokens} tokens are to be written, and the model's context has {context_length}"))
            .hint("lower --max-gen-tokens"));
    };
    let mut tokens = encode(tokenizer, text)?;
    tokens.drain(..tokens.len().saturating_sub(room));
    match tokens.is_empty() {
        false => Ok(tokens),
        true => tokenizer.bos().map(|id| vec![id]).ok_or_else(|| Error::usage("the prompt has no tokens")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;
    use serde_json::json;

    fn mmlu() -> (Task, Vec<Item>) {
        let task = find("mmlu_anatomy").unwrap().remove(0);
        let record = |i: usize| json!({"question": format!("Q{i}?"), "choices": ["a", "b", "c", "d"], "answer": i % 4});
        let items = task.items(&(0..4).map(record).collect::<Vec<_>>()).unwrap();
        (task, items)
    }

    #[test]
    fn examples_stand_before_the_question() {
        let (task, items) = mmlu();
        let asks = asks(&task, &items, &items[..2], false, 2, None).unwrap();
        let Ask::Likelihood { context, continuation } = &asks[3][1] else { panic!() };
        let block = |q: usize| format!("Q{q}?\nA. a\nB. b\nC. c\nD. d\nAnswer:");
        let header = "The following are multiple choice questions (with answers) about anatomy.\n\n";
        assert_eq!(*context, format!("{header}{} A\n\n{} B\n\n{}", block(0), block(1), block(3)));
        assert_eq!(continuation, " B");
    }

    #[test]
    fn no_question_is_its_own_example() {
        let (task, items) = mmlu();
        for (i, asks) in asks(&task, &items, &items, true, 3, None).unwrap().iter().enumerate() {
            let Ask::Likelihood { context, .. } = &asks[0] else { panic!() };
            assert_eq!(context.matches(&format!("Q{i}?")).count(), 1);
            assert_eq!(context.matches("Answer:").count(), 4);
        }
        let e = asks(&task, &items, &items, true, 4, None).unwrap_err();
        assert!(e.message.contains("4 examples"), "{e}");
    }

    #[test]
    fn conversations_have_turns_and_no_delimiter() {
        let (task, items) = mmlu();
        let render = |m: &[ChatMessage]| Ok(m.iter().map(|m| format!("<{}>", m.role)).collect::<String>());
        let asks = asks(&task, &items[2..], &items[..1], false, 1, Some(&render)).unwrap();
        let want = Ask::Likelihood { context: "<system><user><assistant><user>".into(), continuation: "A".into() };
        assert_eq!(asks[0][0], want);
    }
}
