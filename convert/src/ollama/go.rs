//! As much of Go's `text/template` as chat templates use: what Ollama will make of a template is found out before it is shipped.
//!
//! Data are JSON values. `{{ if }}`, `{{ range }}`, `{{ with }}`, `{{ break }}`, variables, pipelines, and the functions that compare,
//! slice and count are here; `define`, `template` and `block` are not.

use bitsmith_formats::{Error, Result};
use serde_json::Value;
use std::cmp::Ordering;

/// A parsed template.
#[derive(Debug, Clone, PartialEq)]
pub struct Template(Vec<Node>);

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Text(String),
    Print(Pipeline),
    If(Vec<(Pipeline, Vec<Node>)>, Vec<Node>),
    With(Pipeline, Vec<Node>, Vec<Node>),
    Range { names: Vec<String>, over: Pipeline, body: Vec<Node>, otherwise: Vec<Node> },
    Set { name: String, declared: bool, value: Pipeline },
    Break,
    Continue,
}

/// Commands, each of which gets the result of the one before as its last argument.
type Pipeline = Vec<Vec<Operand>>;

#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Literal(Value),
    /// A field of `.` (no name) or of a variable (`$` is the root).
    Path(Option<String>, Vec<String>),
    Nested(Pipeline, Vec<String>),
    Function(String),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Literal(Value),
    /// `.a.b`, or `.` with no parts.
    Field(Vec<String>),
    /// `$x.a`.
    Variable(String, Vec<String>),
    Open,
    /// `)`, perhaps with fields of what it closes.
    Close(Vec<String>),
    Pipe,
    Comma,
    Declare,
    Assign,
}

fn bad(message: impl Into<String>) -> Error {
    Error::failed(format!("Go template: {}", message.into()))
}

impl Template {
    /// Parses a template.
    pub fn parse(source: &str) -> Result<Template> {
        let mut parser = Parser { pieces: pieces(source)?, at: 0 };
        let (nodes, end) = parser.block()?;
        match end {
            None => Ok(Template(nodes)),
            Some(_) => Err(bad("`end` or `else` without a beginning")),
        }
    }

    /// The text that it makes of `data`.
    pub fn render(&self, data: &Value) -> Result<String> {
        let mut run = Run { root: data, variables: Vec::new(), out: String::new() };
        run.nodes(&self.0, data)?;
        Ok(run.out)
    }
}

/// Texts and actions, with white space trimmed where `{{-` and `-}}` ask for it.
enum Piece {
    Text(String),
    Action(Vec<Token>),
}

fn pieces(source: &str) -> Result<Vec<Piece>> {
    let (mut out, mut rest, mut trim) = (Vec::new(), source, false);
    while let Some(start) = rest.find("{{") {
        let after = &rest[start + 2..];
        let (trim_before, after) = match after.strip_prefix('-').filter(|a| a.starts_with([' ', '\n', '\t', '\r'])) {
            Some(after) => (true, after),
            None => (false, after),
        };
        let text = if trim { rest[..start].trim_start() } else { &rest[..start] };
        out.push(Piece::Text(if trim_before { text.trim_end() } else { text }.to_string()));
        let comment = after.trim_start().starts_with("/*");
        let len = if comment { after.find("*/").and_then(|n| Some(n + after[n..].find("}}")?)) } else { action_len(after) };
        let len = len.ok_or_else(|| bad("an action that does not end"))?;
        let action = &after[..len];
        let ends = action.strip_suffix('-').filter(|a| a.ends_with([' ', '\n', '\t', '\r']));
        trim = ends.is_some();
        if !comment {
            out.push(Piece::Action(tokens(ends.unwrap_or(action))?));
        }
        rest = &after[len + 2..];
    }
    out.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_string()));
    Ok(out)
}

/// Bytes up to `}}`, outside strings.
fn action_len(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (Some('"'), '\\') => _ = chars.next(),
            (Some(q), c) if q == c => quote = None,
            (None, '"' | '`') => quote = Some(c),
            (None, '}') if text[i..].starts_with("}}") => return Some(i),
            _ => {}
        }
    }
    None
}

fn tokens(action: &str) -> Result<Vec<Token>> {
    let mut out = Vec::new();
    let mut rest = action.trim_start();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name_len = |text: &str| text.find(|c| !is_name(c)).unwrap_or(text.len());
    while let Some(c) = rest.chars().next() {
        let (token, len) = match c {
            '(' => (Token::Open, 1),
            ')' => {
                let (fields, len) = fields(&rest[1..]);
                (Token::Close(fields), 1 + len)
            }
            '|' => (Token::Pipe, 1),
            ',' => (Token::Comma, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '=' => (Token::Assign, 1),
            '`' => {
                let len = rest[1..].find('`').ok_or_else(|| bad("a string that does not end"))?;
                (Token::Literal(rest[1..=len].into()), len + 2)
            }
            '"' => {
                let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
                let text = values.next().and_then(Result::ok).ok_or_else(|| bad(format!("no string: {rest}")))?;
                (Token::Literal(text.into()), values.byte_offset())
            }
            '.' => match fields(rest) {
                (fields, 0) => (Token::Field(fields), 1),
                (fields, len) => (Token::Field(fields), len),
            },
            '$' => {
                let len = 1 + name_len(&rest[1..]);
                let (fields, more) = fields(&rest[len..]);
                (Token::Variable(rest[1..len].to_string(), fields), len + more)
            }
            c if c.is_ascii_digit() || c == '-' => {
                let len = 1 + rest[1..].find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len() - 1);
                let number: i64 = rest[..len].parse().map_err(|_| bad(format!("no number: {rest}")))?;
                (Token::Literal(number.into()), len)
            }
            c if is_name(c) => {
                let word = &rest[..name_len(rest)];
                let token = match word {
                    "true" | "false" => Token::Literal((word == "true").into()),
                    "nil" => Token::Literal(Value::Null),
                    _ => Token::Word(word.to_string()),
                };
                (token, word.len())
            }
            _ => return Err(bad(format!("what is `{rest}`?"))),
        };
        out.push(token);
        rest = rest[len..].trim_start();
    }
    Ok(out)
}

/// Names after dots at the beginning of a text, and their length in bytes.
fn fields(text: &str) -> (Vec<String>, usize) {
    let (mut names, mut at) = (Vec::new(), 0);
    while let Some(after) = text[at..].strip_prefix('.') {
        let len = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
        if len == 0 {
            break;
        }
        names.push(after[..len].to_string());
        at += 1 + len;
    }
    (names, at)
}

/// What closed a block, without its first word: nothing at the end of the text.
type Close = Option<(String, Vec<Token>)>;

struct Parser {
    pieces: Vec<Piece>,
    at: usize,
}

impl Parser {
    /// Nodes up to the `end` or `else` that closes the block, which is given without its first word.
    fn block(&mut self) -> Result<(Vec<Node>, Close)> {
        let mut nodes = Vec::new();
        while self.at < self.pieces.len() {
            self.at += 1;
            let tokens = match &self.pieces[self.at - 1] {
                Piece::Text(text) => {
                    if !text.is_empty() {
                        nodes.push(Node::Text(text.clone()));
                    }
                    continue;
                }
                Piece::Action(tokens) => tokens.clone(),
            };
            let word = match tokens.first() {
                Some(Token::Word(word)) => word.as_str(),
                _ => "",
            };
            match word {
                "end" | "else" => return Ok((nodes, Some((word.to_string(), tokens[1..].to_vec())))),
                "if" => nodes.push(self.branches(&tokens[1..])?),
                "with" => {
                    let value = pipeline(&tokens[1..])?;
                    let (body, otherwise) = self.body()?;
                    nodes.push(Node::With(value, body, otherwise));
                }
                "range" => {
                    let (names, over) = declared(&tokens[1..]);
                    let over = pipeline(over)?;
                    let (body, otherwise) = self.body()?;
                    nodes.push(Node::Range { names, over, body, otherwise });
                }
                "break" => nodes.push(Node::Break),
                "continue" => nodes.push(Node::Continue),
                "define" | "template" | "block" => return Err(bad(format!("`{word}` is not supported"))),
                _ => nodes.push(match &tokens[..] {
                    [Token::Variable(name, path), mark @ (Token::Declare | Token::Assign), value @ ..] if path.is_empty() => {
                        Node::Set { name: name.clone(), declared: *mark == Token::Declare, value: pipeline(value)? }
                    }
                    all => Node::Print(pipeline(all)?),
                }),
            }
        }
        Ok((nodes, None))
    }

    fn branches(&mut self, condition: &[Token]) -> Result<Node> {
        let (mut branches, mut condition) = (Vec::new(), pipeline(condition)?);
        loop {
            let (body, end) = self.block()?;
            branches.push((condition, body));
            match end {
                Some((word, more)) if word == "else" && more.first() == Some(&Token::Word("if".into())) => {
                    condition = pipeline(&more[1..])?;
                }
                Some((word, _)) if word == "else" => {
                    let (otherwise, end) = self.block()?;
                    return closed(end).map(|()| Node::If(branches, otherwise));
                }
                end => return closed(end).map(|()| Node::If(branches, Vec::new())),
            }
        }
    }

    /// What stands before `else`, if there is one, and before `end`.
    fn body(&mut self) -> Result<(Vec<Node>, Vec<Node>)> {
        let (body, end) = self.block()?;
        match end {
            Some((word, more)) if word == "else" && more.is_empty() => {
                let (otherwise, end) = self.block()?;
                closed(end).map(|()| (body, otherwise))
            }
            end => closed(end).map(|()| (body, Vec::new())),
        }
    }
}

fn closed(end: Option<(String, Vec<Token>)>) -> Result<()> {
    match end {
        Some((word, more)) if word == "end" && more.is_empty() => Ok(()),
        _ => Err(bad("a block without its `end`")),
    }
}

/// `$i, $x := ` before what a range goes over.
fn declared(tokens: &[Token]) -> (Vec<String>, &[Token]) {
    let Some(at) = tokens.iter().position(|t| *t == Token::Declare) else { return (Vec::new(), tokens) };
    let names = tokens[..at].iter().filter_map(|t| match t {
        Token::Variable(name, _) => Some(name.clone()),
        _ => None,
    });
    (names.collect(), &tokens[at + 1..])
}

fn pipeline(tokens: &[Token]) -> Result<Pipeline> {
    let mut rest = tokens;
    let pipeline = commands(&mut rest)?;
    if rest.is_empty() { Ok(pipeline) } else { Err(bad("a parenthesis too many")) }
}

fn commands(rest: &mut &[Token]) -> Result<Pipeline> {
    let mut all: Pipeline = vec![Vec::new()];
    while let Some((token, more)) = rest.split_first() {
        if matches!(token, Token::Close(_)) {
            break;
        }
        *rest = more;
        let operand = match token {
            Token::Pipe => {
                all.push(Vec::new());
                continue;
            }
            Token::Literal(value) => Operand::Literal(value.clone()),
            Token::Field(path) => Operand::Path(None, path.clone()),
            Token::Variable(name, path) => Operand::Path(Some(name.clone()), path.clone()),
            Token::Word(name) => Operand::Function(name.clone()),
            Token::Open => {
                let inner = commands(rest)?;
                let Some((Token::Close(path), more)) = rest.split_first() else { return Err(bad("a parenthesis too few")) };
                *rest = more;
                Operand::Nested(inner, path.clone())
            }
            other => return Err(bad(format!("{other:?} has no place in a pipeline"))),
        };
        all.last_mut().expect("starts with one").push(operand);
    }
    if all.iter().any(Vec::is_empty) { Err(bad("an empty command")) } else { Ok(all) }
}

struct Run<'a> {
    root: &'a Value,
    variables: Vec<(String, Value)>,
    out: String,
}

/// What a block ended with.
#[derive(PartialEq)]
enum Flow {
    Next,
    Break,
    Continue,
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow> {
        let depth = self.variables.len();
        let mut flow = Flow::Next;
        for node in nodes {
            flow = self.node(node, dot)?;
            if flow != Flow::Next {
                break;
            }
        }
        self.variables.truncate(depth);
        Ok(flow)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(value) => {
                let value = self.pipeline(value, dot)?;
                self.out.push_str(&printed(&value));
            }
            Node::Set { name, declared, value } => {
                let value = self.pipeline(value, dot)?;
                match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
                    Some((_, old)) if !declared => *old = value,
                    _ => self.variables.push((name.clone(), value)),
                }
                // A variable lives to the end of its block, which `nodes` sees to.
            }
            Node::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if truth(&self.pipeline(condition, dot)?) {
                        return self.nodes(body, dot);
                    }
                }
                return self.nodes(otherwise, dot);
            }
            Node::With(value, body, otherwise) => {
                let value = self.pipeline(value, dot)?;
                return if truth(&value) { self.nodes(body, &value) } else { self.nodes(otherwise, dot) };
            }
            Node::Range { names, over, body, otherwise } => {
                let items: Vec<(Value, Value)> = match self.pipeline(over, dot)? {
                    Value::Array(items) => items.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
                    Value::Object(map) => map.into_iter().map(|(k, v)| (k.into(), v)).collect(),
                    Value::Null => Vec::new(),
                    other => return Err(bad(format!("cannot range over {other}"))),
                };
                if items.is_empty() {
                    return self.nodes(otherwise, dot);
                }
                for (key, item) in items {
                    let depth = self.variables.len();
                    match &names[..] {
                        [] => {}
                        [value] => self.variables.push((value.clone(), item.clone())),
                        [index, value, ..] => {
                            self.variables.push((index.clone(), key));
                            self.variables.push((value.clone(), item.clone()));
                        }
                    }
                    let flow = self.nodes(body, &item)?;
                    self.variables.truncate(depth);
                    if flow == Flow::Break {
                        break;
                    }
                }
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Next)
    }

    fn pipeline(&self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut last = None;
        for command in pipeline {
            let (first, arguments) = command.split_first().expect("commands have operands");
            last = Some(match first {
                Operand::Function(name) => {
                    let mut values = arguments.iter().map(|a| self.operand(a, dot)).collect::<Result<Vec<_>>>()?;
                    values.extend(last);
                    call(name, &values)?
                }
                value if arguments.is_empty() && last.is_none() => self.operand(value, dot)?,
                _ => return Err(bad("arguments to what is no function")),
            });
        }
        last.ok_or_else(|| bad("an empty action"))
    }

    fn operand(&self, operand: &Operand, dot: &Value) -> Result<Value> {
        Ok(match operand {
            Operand::Literal(value) => value.clone(),
            Operand::Path(None, path) => walk(dot, path),
            Operand::Path(Some(name), path) if name.is_empty() => walk(self.root, path),
            Operand::Path(Some(name), path) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                walk(&found.ok_or_else(|| bad(format!("undefined variable ${name}")))?.1, path)
            }
            Operand::Nested(pipeline, path) => walk(&self.pipeline(pipeline, dot)?, path),
            Operand::Function(name) => call(name, &[])?,
        })
    }
}

/// A field of a field; null where there is none, as Ollama's maps have it.
fn walk(value: &Value, path: &[String]) -> Value {
    path.iter().try_fold(value, |value, name| value.get(name)).cloned().unwrap_or(Value::Null)
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

fn printed(value: &Value) -> String {
    match value {
        Value::String(s) => s.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let wrong = || bad(format!("{name} cannot take these arguments"));
    let index = |v: &Value| v.as_u64().map(|n| n as usize).ok_or_else(wrong);
    let compare = |wanted: &[Ordering]| match arguments {
        [a, b] => Ok(Value::Bool(wanted.contains(&order(a, b).ok_or_else(wrong)?))),
        _ => Err(wrong()),
    };
    match (name, arguments) {
        ("and", [.., last]) => Ok(arguments.iter().find(|v| !truth(v)).unwrap_or(last).clone()),
        ("or", [.., last]) => Ok(arguments.iter().find(|v| truth(v)).unwrap_or(last).clone()),
        ("not", [value]) => Ok((!truth(value)).into()),
        // Any of several, as in Go.
        ("eq", [first, others @ ..]) if !others.is_empty() => Ok(others.contains(first).into()),
        ("ne", [a, b]) => Ok((a != b).into()),
        ("lt", _) => compare(&[Ordering::Less]),
        ("le", _) => compare(&[Ordering::Less, Ordering::Equal]),
        ("gt", _) => compare(&[Ordering::Greater]),
        ("ge", _) => compare(&[Ordering::Greater, Ordering::Equal]),
        ("len", [Value::Array(a)]) => Ok(a.len().into()),
        ("len", [Value::Object(o)]) => Ok(o.len().into()),
        ("len", [Value::String(s)]) => Ok(s.len().into()),
        ("len", [Value::Null]) => Ok(0.into()),
        ("index", [Value::Array(a), i]) => a.get(index(i)?).cloned().ok_or_else(wrong),
        ("index", [Value::Object(o), Value::String(key)]) => Ok(o.get(key).cloned().unwrap_or(Value::Null)),
        ("slice", [Value::Array(a), from, to @ ..]) => {
            let to = to.first().map(index).transpose()?.unwrap_or(a.len());
            a.get(index(from)?..to).map(|part| part.to_vec().into()).ok_or_else(wrong)
        }
        ("slice", [Value::String(s), from, to @ ..]) => {
            let to = to.first().map(index).transpose()?.unwrap_or(s.len());
            s.get(index(from)?..to).map(Value::from).ok_or_else(wrong)
        }
        ("json", [value]) => Ok(value.to_string().into()),
        ("print", values) => Ok(values.iter().map(printed).collect::<String>().into()),
        _ => Err(bad(format!("no function {name} of {} arguments", arguments.len()))),
    }
}

fn order(a: &Value, b: &Value) -> Option<Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn renders_as_go_does() {
        let data = json!({
            "System": "S", "Tools": null,
            "Messages": [{"Role": "user", "Content": "a"}, {"Role": "assistant", "Content": "b"}, {"Role": "user", "Content": "c"}],
        });
        for (template, text) in [
            ("x {{- /* no */ -}}  y", "xy"),
            ("{{ .System }}{{ .Nothing }}!", "S!"),
            ("{{ if .Tools }}t{{ else if eq .System \"S\" }}s{{ else }}n{{ end }}", "s"),
            ("{{ range .Messages }}[{{ .Role }}:{{ .Content }}]{{ end }}", "[user:a][assistant:b][user:c]"),
            (
                "{{- range $i, $m := .Messages }}\n{{- $last := eq (len (slice $.Messages $i)) 1 }}{{ $i }}{{ $m.Content }}{{ if $last }}.{{ end }}\n{{ end }}",
                "0a\n1b\n2c.\n",
            ),
            ("{{ range .Messages }}{{ if eq .Role \"assistant\" }}{{ break }}{{ end }}{{ .Content }}{{ end }}", "a"),
            ("{{ $n := 0 }}{{ range .Messages }}{{ if eq .Role \"user\" }}{{ $n = 7 }}{{ end }}{{ end }}{{ $n }}", "7"),
            ("{{ (index .Messages 1).Content }}{{ with .System }}<{{ . }}>{{ end }}", "b<S>"),
            ("{{ `a\"b` }}{{ \"\\n{{\" }}", "a\"b\n{{"),
            ("{{ if and (not .Tools) (or .Tools .System) }}ok{{ end }}{{ .Messages | len | print }}", "ok3"),
            ("{{ json (index .Messages 0) }}", "{\"Role\":\"user\",\"Content\":\"a\"}"),
            ("{{ if gt 2 1 }}{{ end }}{{ range .Tools }}x{{ else }}none{{ end }}", "none"),
        ] {
            let parsed = Template::parse(template).unwrap_or_else(|e| panic!("{template}: {e}"));
            assert_eq!(parsed.render(&data).unwrap(), text, "{template}");
        }
    }

    #[test]
    fn what_is_no_template() {
        for source in ["{{ if .A }}", "{{ end }}", "{{ .A", "{{ (.A }}", "{{ }}", "{{ template \"x\" }}", "{{ ~ }}", "{{ \"a }}"]
        {
            assert!(Template::parse(source).is_err(), "{source}");
        }
        for source in ["{{ $x }}", "{{ frobnicate 1 }}", "{{ index .M 0 }}", "{{ lt .A 1 }}"] {
            assert!(Template::parse(source).unwrap().render(&json!({"A": "s"})).is_err(), "{source}");
        }
    }
}
