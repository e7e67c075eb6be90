//! What chat templates expect of Python: methods of strings, dictionaries and lists, `json.dumps`, `strftime`.

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};
use std::time::{SystemTime, UNIX_EPOCH};

type Result<T> = std::result::Result<T, Error>;

/// Steps that a template may take: far more than the longest conversation needs, and less than a second.
pub(crate) const MAX_STEPS: u64 = 2_000_000;
/// Elements that a template may count through at once.
const MAX_RANGE: i64 = 10_000;

/// Bounds what a template from a stranger can spend.
pub(crate) fn limit(env: &mut Environment<'_>) {
    env.set_fuel(Some(MAX_STEPS));
    env.add_function("range", |from: i64, to: Option<i64>, step: Option<i64>| -> Result<Vec<i64>> {
        let (from, to, step) = (if to.is_some() { from } else { 0 }, to.unwrap_or(from), step.unwrap_or(1));
        let span = i128::from(to) - i128::from(from);
        let refuse = |why: String| Err(Error::new(ErrorKind::InvalidOperation, why));
        if step == 0 {
            return refuse("range() with a step of 0".into());
        }
        let count = (span / i128::from(step) + i128::from(span % i128::from(step) != 0)).max(0);
        if span != 0 && (span > 0) != (step > 0) {
            return Ok(Vec::new());
        }
        if count > i128::from(MAX_RANGE) {
            return refuse(format!("range() over {count} elements, more than {MAX_RANGE}"));
        }
        Ok((0..count as i64).map(|i| from + i * step).collect())
    });
}

/// Called by the template engine for methods that its own values lack.
pub(crate) fn call_method(_: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value> {
    let found = match value.kind() {
        ValueKind::String => string_method(value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map => map_method(value, method, args)?,
        ValueKind::Seq | ValueKind::Iterable => list_method(value, method, args)?,
        _ => None,
    };
    found.ok_or_else(|| Error::new(ErrorKind::UnknownMethod, format!("{} has no method named {method}", value.kind())))
}

fn text(args: &[Value], i: usize) -> Result<Option<&str>> {
    match args.get(i) {
        None => Ok(None),
        Some(v) if v.is_none() => Ok(None),
        Some(v) => v.as_str().map(Some).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "expected a string")),
    }
}

fn need(args: &[Value], i: usize) -> Result<&str> {
    text(args, i)?.ok_or_else(|| Error::new(ErrorKind::MissingArgument, "an argument is missing"))
}

fn string_method(s: &str, method: &str, args: &[Value]) -> Result<Option<Value>> {
    let any = |test: &dyn Fn(&str) -> bool| -> Result<bool> {
        match args.first() {
            // A tuple of prefixes or suffixes.
            Some(v) if matches!(v.kind(), ValueKind::Seq) => Ok(v.try_iter()?.any(|p| p.as_str().is_some_and(test))),
            _ => Ok(test(need(args, 0)?)),
        }
    };
    let every = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    let chars = |i: usize| -> Result<Option<Vec<char>>> { Ok(text(args, i)?.map(|t| t.chars().collect())) };
    Ok(Some(match method {
        "strip" | "lstrip" | "rstrip" => {
            let set = chars(0)?;
            let drop = |c: char| set.as_ref().map_or(c.is_whitespace(), |set| set.contains(&c));
            Value::from(match method {
                "strip" => s.trim_matches(drop),
                "lstrip" => s.trim_start_matches(drop),
                _ => s.trim_end_matches(drop),
            })
        }
        "removeprefix" => s.strip_prefix(need(args, 0)?).unwrap_or(s).into(),
        "removesuffix" => s.strip_suffix(need(args, 0)?).unwrap_or(s).into(),
        "split" | "rsplit" => split(s, text(args, 0)?, args.get(1).and_then(Value::as_i64), method == "rsplit"),
        "splitlines" => s.lines().map(Value::from).collect::<Vec<_>>().into(),
        "partition" | "rpartition" => {
            let sep = need(args, 0)?;
            let found = if method == "partition" { s.split_once(sep) } else { s.rsplit_once(sep) };
            let parts = match (found, method) {
                (Some((a, b)), _) => [a, sep, b],
                (None, "partition") => [s, "", ""],
                (None, _) => ["", "", s],
            };
            parts.map(Value::from).to_vec().into()
        }
        "startswith" => any(&|p| s.starts_with(p))?.into(),
        "endswith" => any(&|p| s.ends_with(p))?.into(),
        "upper" => s.to_uppercase().into(),
        "lower" | "casefold" => s.to_lowercase().into(),
        "capitalize" => capitalize(s).into(),
        "title" => title(s).into(),
        "replace" => {
            let (from, to) = (need(args, 0)?, need(args, 1)?);
            match args.get(2).and_then(Value::as_i64) {
                Some(n) if n >= 0 => s.replacen(from, to, n as usize),
                _ => s.replace(from, to),
            }
            .into()
        }
        "find" => match s.find(need(args, 0)?) {
            Some(at) => Value::from(s[..at].chars().count()),
            None => Value::from(-1),
        },
        "count" => s.matches(need(args, 0)?).count().into(),
        "join" => {
            let list = args.first().ok_or_else(|| Error::new(ErrorKind::MissingArgument, "join needs a list"))?;
            list.try_iter()?.map(|v| v.to_string()).collect::<Vec<_>>().join(s).into()
        }
        "isdigit" | "isdecimal" | "isnumeric" => every(char::is_numeric).into(),
        "isalpha" => every(char::is_alphabetic).into(),
        "isalnum" => every(char::is_alphanumeric).into(),
        "isspace" => every(char::is_whitespace).into(),
        "isupper" => (s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase)).into(),
        "islower" => (s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase)).into(),
        _ => return Ok(None),
    }))
}

/// Python's two kinds of split: at a separator, or at runs of white space with none at the ends.
fn split(s: &str, sep: Option<&str>, max: Option<i64>, from_right: bool) -> Value {
    let max = max.filter(|n| *n >= 0).map(|n| n as usize);
    let mut parts: Vec<&str> = match (sep, max) {
        (Some(sep), None) => s.split(sep).collect(),
        (Some(sep), Some(n)) if from_right => s.rsplitn(n + 1, sep).collect(),
        (Some(sep), Some(n)) => s.splitn(n + 1, sep).collect(),
        (None, None) => s.split_whitespace().collect(),
        (None, Some(n)) => words(s, n, from_right),
    };
    if from_right && max.is_some() {
        parts.reverse();
    }
    parts.into_iter().map(Value::from).collect::<Vec<_>>().into()
}

/// At most `n` splits at white space; the last part keeps its inner white space. From the right, parts come last first.
fn words(s: &str, n: usize, from_right: bool) -> Vec<&str> {
    let (mut parts, mut rest) = (Vec::new(), s.trim());
    while !rest.is_empty() {
        let cut = if from_right { rest.rfind(char::is_whitespace) } else { rest.find(char::is_whitespace) };
        match cut {
            Some(at) if parts.len() < n => {
                let (a, b) = rest.split_at(at);
                let (part, next) = if from_right { (b.trim_start(), a.trim_end()) } else { (a, b.trim_start()) };
                parts.push(part);
                rest = next;
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

fn capitalize(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars.flat_map(char::to_lowercase)).collect())
}

fn title(s: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_alphabetic();
    }
    out
}

fn map_method(map: &Value, method: &str, args: &[Value]) -> Result<Option<Value>> {
    let pairs =
        || -> Result<Vec<(Value, Value)>> { map.try_iter()?.map(|key| map.get_item(&key).map(|value| (key, value))).collect() };
    Ok(Some(match method {
        "items" => pairs()?.into_iter().map(|(k, v)| Value::from(vec![k, v])).collect::<Vec<_>>().into(),
        "keys" => pairs()?.into_iter().map(|(k, _)| k).collect::<Vec<_>>().into(),
        "values" => pairs()?.into_iter().map(|(_, v)| v).collect::<Vec<_>>().into(),
        "get" => {
            let key = args.first().ok_or_else(|| Error::new(ErrorKind::MissingArgument, "get needs a key"))?;
            match map.get_item(key)? {
                v if v.is_undefined() => args.get(1).cloned().unwrap_or_else(|| Value::from(())),
                v => v,
            }
        }
        _ => return Ok(None),
    }))
}

fn list_method(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>> {
    let wanted = || args.first().ok_or_else(|| Error::new(ErrorKind::MissingArgument, "an argument is missing"));
    Ok(Some(match method {
        "count" => {
            let wanted = wanted()?;
            list.try_iter()?.filter(|v| v == wanted).count().into()
        }
        "index" => {
            let wanted = wanted()?;
            let at = list.try_iter()?.position(|v| v == *wanted);
            at.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the value is not in the list"))?.into()
        }
        _ => return Ok(None),
    }))
}

/// `json.dumps(value, ensure_ascii=False)`.
pub(crate) fn json(value: &Value, indent: Option<usize>) -> Result<String> {
    let json = serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    write_json(&json, indent, 0, &mut out);
    Ok(out)
}

fn write_json(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value as V;
    let separate = |out: &mut String, first: bool, depth: usize| match indent {
        Some(n) => {
            out.push_str(if first { "\n" } else { ",\n" });
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
        None if !first => out.push_str(", "),
        None => {}
    };
    let close = |out: &mut String, empty: bool, bracket: char| {
        if let (Some(n), false) = (indent, empty) {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n * depth));
        }
        out.push(bracket);
    };
    match value {
        V::Array(list) => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                separate(out, i == 0, depth + 1);
                write_json(item, indent, depth + 1, out);
            }
            close(out, list.is_empty(), ']');
        }
        V::Object(map) => {
            out.push('{');
            for (i, (key, item)) in map.iter().enumerate() {
                separate(out, i == 0, depth + 1);
                out.push_str(&V::from(key.as_str()).to_string());
                out.push_str(": ");
                write_json(item, indent, depth + 1, out);
            }
            close(out, map.is_empty(), '}');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// Seconds since 1970, UTC.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

const MONTHS: [&str; 12] =
    ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// `time.strftime` of a moment in UTC, for the directives that templates use; an unknown one is an error.
pub(crate) fn strftime(format: &str, seconds: u64) -> Result<String> {
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let first = |name: &str| name[..3].to_string();
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 3) % 7) as usize]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let padded = directive != Some('-');
        if !padded {
            directive = chars.next();
        }
        let number = |n: u64, width: usize| if padded { format!("{n:0width$}") } else { n.to_string() };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_string(),
            Some('b' | 'h') => first(month_name),
            Some('A') => day_name.to_string(),
            Some('a') => first(day_name),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
            Some('j') => number(days - days_before(year) + 1, 3),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            other => {
                let message = format!("strftime_now knows no %{}", other.map_or(String::new(), String::from));
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400)
}

/// Days from 1970-01-01 to the first of January.
fn days_before(year: u64) -> u64 {
    let leaps = |y: u64| y / 4 - y / 100 + y / 400;
    (year - 1970) * 365 + leaps(year - 1) - leaps(1969)
}

/// Year, month (from 1) and day (from 1) of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    let mut year = 1970 + days / 366;
    while days_before(year + 1) <= days {
        year += 1;
    }
    let mut rest = days - days_before(year);
    let mut month = 1;
    for length in [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let f = |s| strftime("%Y-%m-%d %H:%M:%S %A %j %-d %b", s).unwrap();
        assert_eq!(f(0), "1970-01-01 00:00:00 Thursday 001 1 Jan");
        assert_eq!(f(951_782_400), "2000-02-29 00:00:00 Tuesday 060 29 Feb");
        assert_eq!(f(1_735_689_599), "2024-12-31 23:59:59 Tuesday 366 31 Dec");
        assert_eq!(strftime("%d %B %Y, %I %p %%", 1_700_000_000).unwrap(), "14 November 2023, 10 PM %");
        assert!(strftime("%Q", 0).is_err());
    }

    #[test]
    fn splitting_like_python() {
        let f = |s: &str, sep: Option<&str>, max, right| split(s, sep, max, right).to_string();
        assert_eq!(f("a,b,c", Some(","), None, false), "['a', 'b', 'c']");
        assert_eq!(f("a,b,c", Some(","), Some(1), false), "['a', 'b,c']");
        assert_eq!(f("a,b,c", Some(","), Some(1), true), "['a,b', 'c']");
        assert_eq!(f("  a  b  c ", None, None, false), "['a', 'b', 'c']");
        assert_eq!(f("  a  b  c ", None, Some(1), false), "['a', 'b  c']");
        assert_eq!(f("  a  b  c ", None, Some(1), true), "['a  b', 'c']");
    }

    #[test]
    fn json_like_python() {
        let value = Value::from(minijinja::value::Serde(serde_json::json!({"b": [1, "é<"], "a": {}})));
        assert_eq!(json(&value, None).unwrap(), r#"{"b": [1, "é<"], "a": {}}"#);
        assert_eq!(json(&value, Some(2)).unwrap(), "{\n  \"b\": [\n    1,\n    \"é<\"\n  ],\n  \"a\": {}\n}");
    }
}
