//! Quality gates: `kld.mean<0.02`, `ppl_ratio<1.01`, `bytes<4GiB`, `same_top_p>=90%`.
//!
//! A gate names a measured value, an operator and a limit. Where a value was measured several times, on several texts for
//! example, all must hold. A value that was not measured does not hold.

use crate::results::EvalResult;
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;

/// Fields of an artifact.
const ARTIFACT: [&str; 4] = ["bytes", "bpw", "seconds", "peak_rss_bytes"];
/// Fields of a KL divergence.
const KLD: [&str; 14] = [
    "mean",
    "mean_stderr",
    "median",
    "p90",
    "p99",
    "p999",
    "max",
    "same_top_p",
    "rms_dp",
    "ppl",
    "ppl_against",
    "ppl_ratio",
    "ppl_ratio_stderr",
    "tokens",
];
/// Fields of a KL divergence that may stand alone.
const KLD_ALONE: [&str; 4] = ["same_top_p", "rms_dp", "ppl_ratio", "ppl_ratio_stderr"];
/// Fields of a perplexity.
const PERPLEXITY: [&str; 3] = ["ppl", "nll", "stderr"];
/// Fields of a task.
const TASK: [&str; 5] = ["value", "stderr", "delta", "flips", "p_value"];

/// How a value is compared with the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug, Clone, PartialEq)]
enum Key {
    Artifact(String),
    Perplexity { domain: Option<String>, field: String },
    Kld { domain: Option<String>, field: String },
    Task { task: String, field: String },
}

/// A condition on measured values.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    text: String,
    key: Key,
    operator: Operator,
    limit: f64,
}

/// What gates are judged by.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured<'a> {
    /// Quality.
    pub eval: Option<&'a EvalResult>,
    /// Size of the artifact in bytes.
    pub bytes: Option<u64>,
    /// Bits per weight over all tensors.
    pub bpw: Option<f64>,
    /// Seconds that making the artifact took.
    pub seconds: Option<f64>,
    /// Peak resident memory in bytes.
    pub peak_rss_bytes: Option<u64>,
}

/// Whether a gate held.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GateOutcome {
    /// The gate as it was given.
    pub gate: String,
    /// The measured value, the worst of several; `None` if it was not measured.
    pub value: Option<f64>,
    /// Whether it held.
    pub held: bool,
}

impl Operator {
    fn holds(self, value: f64, limit: f64) -> bool {
        match self {
            Operator::Less => value < limit,
            Operator::AtMost => value <= limit,
            Operator::Greater => value > limit,
            Operator::AtLeast => value >= limit,
        }
    }
    /// The value that is hardest on the gate; NaN is the worst.
    fn worst(self, values: impl Iterator<Item = f64>) -> Option<f64> {
        let upper = matches!(self, Operator::Less | Operator::AtMost);
        values.reduce(|a, b| if a.is_nan() || (upper == (a > b) && !b.is_nan()) { a } else { b })
    }
}

impl FromStr for Gate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Err(Error::usage(format!("gate `{text}`: {why}")).hint(known()));
        let Some(at) = text.find(['<', '>']) else { return bad("no comparison: <, <=, > or >=") };
        let (key, rest) = (text[..at].trim(), &text[at..]);
        let (operator, limit) = match (rest.strip_prefix("<="), rest.strip_prefix(">=")) {
            (Some(limit), _) => (Operator::AtMost, limit),
            (_, Some(limit)) => (Operator::AtLeast, limit),
            _ if rest.starts_with('<') => (Operator::Less, &rest[1..]),
            _ => (Operator::Greater, &rest[1..]),
        };
        let Some(key) = Key::parse(key) else { return bad("there is no such value") };
        let Some(limit) = parse_limit(limit.trim()) else { return bad("the limit is not a number") };
        Ok(Gate { text: text.to_string(), key, operator, limit })
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn known() -> String {
    format!(
        "values are {}; ppl, perplexity.{{{}}}; {}, kld.{{{}}}, kld.DOMAIN.mean; tasks.TASK.{{{}}}, tasks.TASK.METRIC.value",
        ARTIFACT.join(", "),
        PERPLEXITY.join(","),
        KLD_ALONE.join(", "),
        KLD.join(","),
        TASK.join(",")
    )
}

impl Key {
    fn parse(key: &str) -> Option<Key> {
        let one_of = |fields: &[&str], field: &str| fields.contains(&field).then(|| field.to_string());
        if let Some(field) = one_of(&ARTIFACT, key) {
            return Some(Key::Artifact(field));
        }
        if key == "ppl" || key == "perplexity" {
            return Some(Key::Perplexity { domain: None, field: "ppl".into() });
        }
        if key == "kld" {
            return Some(Key::Kld { domain: None, field: "mean".into() });
        }
        if let Some(field) = one_of(&KLD_ALONE, key) {
            return Some(Key::Kld { domain: None, field });
        }
        let (family, rest) = key.split_once('.')?;
        // Names of domains and tasks may hold dots, fields do not.
        let (name, field) = match rest.rsplit_once('.') {
            Some((name, field)) => (Some(name.to_string()).filter(|n| !n.is_empty())?.into(), field),
            None => (None, rest),
        };
        match family {
            "perplexity" => Some(Key::Perplexity { domain: name, field: one_of(&PERPLEXITY, field)? }),
            "kld" => Some(Key::Kld { domain: name, field: one_of(&KLD, field)? }),
            "tasks" => Some(Key::Task { task: name?, field: one_of(&TASK, field)? }),
            _ => None,
        }
    }
}

/// A finite number, with a unit of bytes or a per cent sign.
fn parse_limit(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 10] = [
        ("%", 0.01),
        ("TiB", 1_099_511_627_776.0),
        ("GiB", 1_073_741_824.0),
        ("MiB", 1_048_576.0),
        ("KiB", 1024.0),
        ("TB", 1e12),
        ("GB", 1e9),
        ("MB", 1e6),
        ("kB", 1e3),
        ("B", 1.0),
    ];
    let (number, unit) = UNITS.iter().find_map(|(u, f)| Some((text.strip_suffix(u)?, *f))).unwrap_or((text, 1.0));
    number.trim().parse::<f64>().ok().map(|n| n * unit).filter(|n| n.is_finite())
}

impl Gate {
    /// Judges the gate.
    pub fn judge(&self, measured: &Measured<'_>) -> GateOutcome {
        let value = self.operator.worst(self.key.values(measured).into_iter());
        let held = value.is_some_and(|v| self.operator.holds(v, self.limit));
        GateOutcome { gate: self.text.clone(), value, held }
    }

    /// Whether judging the gate needs a KL divergence, so that its lack can be told before the work.
    pub fn needs_kld(&self) -> bool {
        matches!(self.key, Key::Kld { .. })
    }
    /// Whether judging the gate needs a perplexity.
    pub fn needs_perplexity(&self) -> bool {
        matches!(self.key, Key::Perplexity { .. })
    }
    /// Whether judging the gate needs a task score.
    pub fn needs_tasks(&self) -> bool {
        matches!(self.key, Key::Task { .. })
    }
}

impl Key {
    fn values(&self, measured: &Measured<'_>) -> Vec<f64> {
        let eval = measured.eval;
        match self {
            Key::Artifact(field) => match field.as_str() {
                "bytes" => measured.bytes.map(|b| b as f64),
                "bpw" => measured.bpw,
                "seconds" => measured.seconds,
                _ => measured.peak_rss_bytes.map(|b| b as f64),
            }
            .into_iter()
            .collect(),
            Key::Perplexity { domain, field } => {
                let all = eval.into_iter().flat_map(|e| &e.perplexity);
                all.flat_map(|p| fields(p, domain.as_deref(), field)).collect()
            }
            Key::Kld { domain, field } => {
                let all = eval.into_iter().flat_map(|e| &e.kld);
                all.flat_map(|k| fields(k, domain.as_deref(), field)).collect()
            }
            Key::Task { task, field } => {
                // A task alone means its first metric, which is the one that counts.
                let tasks = || eval.into_iter().flat_map(|e| &e.tasks);
                let found = tasks().find(|t| t.task == *task);
                let found = found.or_else(|| tasks().find(|t| format!("{}.{}", t.task, t.metric) == *task));
                found
                    .into_iter()
                    .filter_map(|t| match field.as_str() {
                        "value" => Some(t.value),
                        "stderr" => Some(t.stderr),
                        "delta" => t.paired.as_ref().map(|p| p.delta),
                        "flips" => t.paired.as_ref().map(|p| p.flips as f64),
                        _ => t.paired.as_ref().map(|p| p.p_value),
                    })
                    .collect()
            }
        }
    }
}

/// A field of a record, or of those of its domains that have this name. Non-finite numbers are null in JSON: NaN here.
fn fields(record: &impl Serialize, domain: Option<&str>, field: &str) -> Vec<f64> {
    let Ok(json) = serde_json::to_value(record) else { return Vec::new() };
    let number = |v: &Value| v.get(field).map(|n| n.as_f64().unwrap_or(f64::NAN));
    match domain {
        None => number(&json).into_iter().collect(),
        Some(name) => {
            let domains = json.get("domains").and_then(Value::as_array).into_iter().flatten();
            domains.filter(|d| d["domain"] == name).filter_map(number).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Position;
    use crate::results::tests::eval_windows;
    use crate::results::{Kld, Paired, Perplexity, TaskResult};

    fn result() -> EvalResult {
        let eval = eval_windows(&["code", "v1.5"], &[0, 1]);
        let at = |kld| Position { nll_against: 1.0, nll: 1.01, kld, same_top: true, ..Position::default() };
        let kld = |a, b| Kld::from_positions(&eval, "ref", &[vec![at(a)], vec![at(b)]]);
        EvalResult {
            model: "m".into(),
            perplexity: vec![Perplexity::from_nlls(&eval, &[vec![1.0], vec![2.0]])],
            kld: vec![kld(0.01, 0.03), kld(0.02, 0.04)],
            tasks: vec![TaskResult {
                task: "hellaswag".into(),
                n: 10,
                metric: "acc".into(),
                value: 0.5,
                stderr: 0.1,
                paired: Some(Paired { against: "ref".into(), delta: -0.01, flips: 3, p_value: 0.4, ..Paired::default() }),
                ..TaskResult::default()
            }],
            ..EvalResult::default()
        }
    }

    fn judge(gate: &str) -> GateOutcome {
        let eval = result();
        let measured =
            Measured { eval: Some(&eval), bytes: Some(4 << 30), bpw: Some(4.5), seconds: Some(9.0), peak_rss_bytes: None };
        gate.parse::<Gate>().unwrap().judge(&measured)
    }

    #[test]
    fn limits_and_operators() {
        for (gate, held) in [
            ("bytes<4GiB", false),
            ("bytes <= 4GiB", true),
            ("bytes<4.5GB", true),
            ("bytes>=4096MiB", true),
            ("bpw<4.6", true),
            ("bpw>4.5", false),
            ("same_top_p>90%", true),
            ("ppl_ratio<1.01", false),
            ("ppl_ratio<1.011", true),
            ("kld.mean<0.03", false),
            ("kld.mean<=0.031", true),
            ("kld.mean>0.02", false),
            ("kld<0.04", true),
            ("kld.code.mean<0.021", true),
            ("kld.v1.5.mean<0.021", false),
            ("ppl<4.5", true),
            ("perplexity.code.ppl<2.72", true),
            ("tasks.hellaswag.delta>-0.005", false),
            ("tasks.hellaswag.value>=0.5", true),
            ("tasks.hellaswag.acc.value>=0.5", true),
            ("tasks.hellaswag.acc.p_value>0.5", false),
        ] {
            assert_eq!(judge(gate).held, held, "{gate}");
        }
        assert_eq!(judge("kld.max<1").value, Some(0.04));
        assert_eq!(judge("kld.max>1").value, Some(0.03));
        assert_eq!(judge("kld.median>1").value.map(|v| (v * 1e3).round()), Some(20.0));
    }

    #[test]
    fn what_was_not_measured_does_not_hold() {
        for gate in ["peak_rss_bytes>0", "kld.none.mean<9", "tasks.mmlu.value>0"] {
            assert_eq!(judge(gate), GateOutcome { gate: gate.into(), value: None, held: false });
        }
        let gate: Gate = "kld.mean<1".parse().unwrap();
        assert!(!gate.judge(&Measured::default()).held);
        assert!(gate.needs_kld() && !gate.needs_perplexity() && !gate.needs_tasks());
        assert!(!Operator::Less.holds(f64::NAN, 1.0));
        assert!(Operator::Less.worst([1.0, f64::NAN, 0.0].into_iter()).unwrap().is_nan());
        assert!(Operator::Greater.worst([f64::NAN, 1.0].into_iter()).unwrap().is_nan());
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for gate in
            ["", "bytes", "bytes<", "bytes=3", "weight<3", "kld.meen<1", "tasks.delta>0", "bytes<4XiB", "bpw<inf", "kld..mean<1"]
        {
            let e = gate.parse::<Gate>().unwrap_err();
            assert_eq!(e.kind, bitsmith_formats::ErrorKind::Usage, "{gate}");
            assert!(e.hint.unwrap().contains("kld.{mean"));
        }
    }
}
