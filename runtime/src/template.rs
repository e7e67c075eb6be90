//! Jinja templates over records, as evaluation harnesses write their prompts: undefined names are errors, a final newline stays.

use crate::tokenizer::python;
use bitsmith_formats::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::Value;

fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().keep_trailing_newline(true).build()?);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    python::limit(&mut env);
    env.set_unknown_method_callback(python::call_method);
    Ok(env)
}

fn failed(what: &str, source: &str, e: minijinja::Error) -> Error {
    Error::usage(format!("the {what} `{source}` fails: {e}")).with_source(e)
}

/// The text that a template makes of a record.
pub fn render(source: &str, record: &Value) -> Result<String> {
    environment().and_then(|env| env.render_str(source, Serde(record))).map_err(|e| failed("template", source, e))
}

/// The value of an expression over a record: `choices.text`, `[sol1, sol2]`, `labels.index(answer)`.
pub fn evaluate(source: &str, record: &Value) -> Result<Value> {
    let value = environment().and_then(|env| env.compile_expression(source)?.eval(Serde(record)));
    let value = value.map_err(|e| failed("expression", source, e))?;
    if value.is_undefined() {
        return Err(Error::usage(format!("the expression `{source}` names nothing in the record")));
    }
    serde_json::to_value(&value).map_err(|e| Error::usage(format!("the expression `{source}` gives no plain value: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_and_expressions() {
        let record = json!({"q": " Why? ", "c": {"text": ["a", "b"], "label": ["A", "B"]}, "k": "B", "s1": "x"});
        assert_eq!(render("Q: {{ q.strip() }}\nA:\n", &record).unwrap(), "Q: Why?\nA:\n");
        assert_eq!(render("{% for t in c.text %}{{ t }}{% endfor %}<&>", &record).unwrap(), "ab<&>");
        assert_eq!(evaluate("c.text", &record).unwrap(), json!(["a", "b"]));
        assert_eq!(evaluate("c.label.index(k)", &record).unwrap(), json!(1));
        assert_eq!(evaluate("[s1, q.strip()]", &record).unwrap(), json!(["x", "Why?"]));
        assert_eq!(render("{{ q.split('?')[0]|upper }}", &record).unwrap(), " WHY");
        for bad in ["{{ nothing }}", "{{ q", "{{ c.label.index('Z') }}"] {
            assert_eq!(render(bad, &record).unwrap_err().kind, bitsmith_formats::ErrorKind::Usage, "{bad}");
        }
        assert!(evaluate("nothing", &record).is_err());
        assert!(evaluate("1 +", &record).is_err());
    }
}
