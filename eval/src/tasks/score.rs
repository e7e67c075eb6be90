//! From answers to numbers.

use super::item::Item;
use super::{Extract, Match, Metric, Task};
use crate::paired;
use crate::results::{Paired, TaskResult};
use crate::stats::{mean, mean_and_stderr};
use bitsmith_formats::{Error, Result};
use fancy_regex::Regex;
use serde::{Deserialize, Serialize};

/// What a model answered to an item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Log-likelihood of each continuation, nats, and whether its tokens are the likeliest ones.
    Likelihoods(Vec<(f64, bool)>),
    /// What it wrote.
    Text(String),
    /// What it wrote, and whether that passed its tests.
    Program(String, bool),
}

/// A model's score of every item, by one metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// The metric.
    pub metric: Metric,
    /// In the order of the items: 0 or 1, a share, or a log-likelihood.
    pub values: Vec<f64>,
}

/// The same items scored for another model.
#[derive(Debug, Clone, Copy)]
pub struct Comparison<'a> {
    /// The other model's name.
    pub against: &'a str,
    /// Its scores.
    pub scores: &'a Scores,
}

impl Task {
    /// Scores by each of the task's metrics.
    pub fn score(&self, items: &[Item], answers: &[Answer]) -> Result<Vec<Scores>> {
        let by = |metric: &Metric| -> Result<Scores> {
            let scorer = Scorer::new(metric)?;
            let values = items.iter().zip(answers).map(|(i, a)| scorer.score(i, a)).collect::<Result<_>>()?;
            Ok(Scores { metric: metric.clone(), values })
        };
        self.metrics.iter().map(by).collect()
    }
}

/// The index that [`Metric::Acc`] or, with lengths, [`Metric::AccNorm`] takes for the model's choice: the first of the largest.
pub fn chosen(likelihoods: &[(f64, bool)], lengths: Option<&[f64]>) -> usize {
    let value = |i: usize| likelihoods[i].0 / lengths.map_or(1.0, |l| l[i]);
    (1..likelihoods.len()).fold(0, |best, i| if value(i) > value(best) { i } else { best })
}

/// Lengths in characters of an item's choices.
pub fn lengths(item: &Item) -> Vec<f64> {
    match item {
        Item::Choices { choices, .. } => choices.iter().map(|c| c.chars().count() as f64).collect(),
        Item::Beginnings { queries, .. } => queries.iter().map(|c| c.chars().count() as f64).collect(),
        _ => Vec::new(),
    }
}

struct Scorer<'a> {
    metric: &'a Metric,
    patterns: Option<Patterns<'a>>,
}

/// The regular expressions of a [`Match`].
pub struct Patterns<'a> {
    rule: &'a Match,
    extract: Option<Regex>,
    ignore: Vec<Regex>,
}

impl<'a> Patterns<'a> {
    /// Errors: usage for what is no regular expression.
    pub fn new(rule: &'a Match) -> Result<Self> {
        let regex = |p: &String| Regex::new(p).map_err(|e| Error::usage(format!("`{p}` is not a regular expression: {e}")));
        let extract = rule.extract.as_ref().map(|e| regex(&e.pattern)).transpose()?;
        Ok(Patterns { rule, extract, ignore: rule.ignore.iter().map(regex).collect::<Result<_>>()? })
    }

    /// What counts of a text: a match's first group that took part, or the match; `[invalid]` if there is none.
    pub fn extract(&self, text: &str) -> String {
        let (Some(regex), Some(Extract { last, .. })) = (&self.extract, &self.rule.extract) else { return text.to_string() };
        let mut all = regex.captures_iter(text).filter_map(|c| c.ok());
        let found = if *last { all.last() } else { all.next() };
        let found = found.map(|c| {
            let groups = (1..c.len()).filter_map(|i| c.get(i)).find(|g| !g.as_str().is_empty());
            let whole = (c.len() == 1).then(|| c.get(0)).flatten();
            groups.or(whole).map(|m| m.as_str().trim().to_string())
        });
        found.flatten().unwrap_or_else(|| "[invalid]".into())
    }

    fn normal(&self, text: &str) -> String {
        let text = self.ignore.iter().fold(text.to_string(), |text, r| r.replace_all(&text, "").into_owned());
        if self.rule.ignore_case { text.to_lowercase() } else { text }
    }
}

impl<'a> Scorer<'a> {
    fn new(metric: &'a Metric) -> Result<Self> {
        let patterns = match metric {
            Metric::ExactMatch(rule) => Some(Patterns::new(rule)?),
            _ => None,
        };
        Ok(Scorer { metric, patterns })
    }

    fn score(&self, item: &Item, answer: &Answer) -> Result<f64> {
        let unfit = || Error::failed(format!("an answer does not fit the metric {}", self.metric.key()));
        let yes = |b: bool| f64::from(u8::from(b));
        Ok(match (self.metric, item, answer) {
            (Metric::Acc, Item::Choices { right, .. }, Answer::Likelihoods(l)) => yes(right.contains(&chosen(l, None))),
            (Metric::AccNorm, Item::Choices { right, .. }, Answer::Likelihoods(l)) => {
                yes(right.contains(&chosen(l, Some(&lengths(item)))))
            }
            (Metric::Acc, Item::Beginnings { right, .. }, Answer::Likelihoods(l)) => yes(chosen(l, None) == *right),
            (Metric::AccNorm, Item::Beginnings { right, .. }, Answer::Likelihoods(l)) => {
                yes(chosen(l, Some(&lengths(item))) == *right)
            }
            (Metric::Mass, Item::Choices { right, .. }, Answer::Likelihoods(l)) => mass(l, right),
            (Metric::Acc, Item::Continuation { .. }, Answer::Likelihoods(l)) => yes(l.first().ok_or_else(unfit)?.1),
            (Metric::Perplexity, Item::Continuation { .. }, Answer::Likelihoods(l)) => l.first().ok_or_else(unfit)?.0,
            (Metric::ExactMatch(_), Item::Writing { answer: want, .. }, Answer::Text(text)) => {
                let patterns = self.patterns.as_ref().ok_or_else(unfit)?;
                yes(patterns.normal(&patterns.extract(text)) == patterns.normal(want))
            }
            (Metric::PassAt1, Item::Writing { .. }, Answer::Program(_, passed)) => yes(*passed),
            _ => return Err(unfit()),
        })
    }
}

/// The share of the right choices in the probability of all. Relative to the likeliest, as probabilities may be too small for a number.
fn mass(likelihoods: &[(f64, bool)], right: &[usize]) -> f64 {
    let most = likelihoods.iter().map(|l| l.0).fold(f64::NEG_INFINITY, f64::max);
    let p = |i: usize| (likelihoods[i].0 - most).exp();
    right.iter().map(|i| p(*i)).sum::<f64>() / (0..likelihoods.len()).map(p).sum::<f64>()
}

impl Scores {
    /// The score, its standard error and its 95 % interval.
    pub fn summary(&self) -> (f64, f64, [f64; 2]) {
        let (m, e) = mean_and_stderr(&self.values);
        if self.metric == Metric::Perplexity {
            // The delta method; the interval is that of the logarithm.
            let ends = [-m - paired::Z95 * e, -m + paired::Z95 * e];
            return ((-m).exp(), (-m).exp() * e, ends.map(f64::exp));
        }
        let binary = self.values.iter().all(|v| *v == 0.0 || *v == 1.0);
        let interval = if binary { paired::wilson(m, self.values.len()) } else { [m - paired::Z95 * e, m + paired::Z95 * e] };
        (m, e, interval)
    }

    /// The result of a task with these scores.
    pub fn result(&self, task: &str, shots: usize, other: Option<Comparison<'_>>) -> TaskResult {
        let (value, stderr, interval) = self.summary();
        TaskResult {
            task: task.to_string(),
            n: self.values.len(),
            metric: self.metric.name(),
            value,
            stderr,
            shots,
            interval: Some(interval),
            paired: other.map(|o| self.compare(o)),
        }
    }

    /// Item by item against another model's scores. Binary scores are held to McNemar's test; others to a test that flips the signs of the
    /// differences.
    fn compare(&self, other: Comparison<'_>) -> Paired {
        let (ours, theirs) = (&self.values, &other.scores.values);
        let better = if self.metric.higher_is_better() { 1.0 } else { -1.0 };
        let differences: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
        let binary = ours.iter().chain(theirs).all(|v| *v == 0.0 || *v == 1.0);
        let count = |sign: f64| differences.iter().filter(|d| **d * sign > 0.0).count();
        let (gained, lost) = if binary { (count(1.0), count(-1.0)) } else { (0, 0) };
        let p_value = if binary { paired::mcnemar(gained, lost) } else { paired::sign_flip(&differences) };
        let (delta, interval) = match self.metric {
            Metric::Perplexity => {
                let of = |i: &[usize], v: &[f64]| (-mean(&i.iter().map(|i| v[*i]).collect::<Vec<_>>())).exp();
                let both = |i: &[usize]| of(i, ours) - of(i, theirs);
                let all: Vec<usize> = (0..ours.len()).collect();
                (both(&all), paired::bootstrap_of(ours.len(), both))
            }
            _ => (mean(&differences), paired::bootstrap(&differences)),
        };
        Paired {
            against: other.against.to_string(),
            delta,
            flips: gained + lost,
            p_value,
            gained,
            lost,
            interval: Some(interval),
            verdict: paired::verdict(delta * better, p_value).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;

    fn l(v: &[f64]) -> Answer {
        Answer::Likelihoods(v.iter().map(|v| (*v, false)).collect())
    }

    #[test]
    fn choices_by_likelihood_and_by_length() {
        let task = find("arc_easy").unwrap().remove(0);
        let item = Item::choice("q".into(), vec!["éé".into(), "four".into()], 1).unwrap();
        // −3/2 < −4/4, in characters and not bytes.
        let scores = task.score(&[item.clone(), item], &[l(&[-3.0, -4.0]), l(&[-2.0, -2.0])]).unwrap();
        assert_eq!((scores[0].metric.key(), scores[0].values.as_slice()), ("acc_norm", &[1.0, 1.0][..]));
        // Of equal ones the first.
        assert_eq!(scores[1].values, [0.0, 0.0]);
    }

    #[test]
    fn mass_and_continuations() {
        let item = Item::Choices { query: "q".into(), choices: vec!["a".into(), "b".into(), "c".into()], right: vec![0, 2] };
        let task = find("truthfulqa_mc2").unwrap().remove(0);
        let far = -2000.0;
        let logs = [0.5f64.ln() + far, 0.3f64.ln() + far, 0.2f64.ln() + far];
        assert!((task.score(&[item], &[l(&logs)]).unwrap()[0].values[0] - 0.7).abs() < 1e-12);
        let task = find("lambada_openai").unwrap().remove(0);
        let item = Item::Continuation { query: "a".into(), answer: " b".into() };
        let answers = [Answer::Likelihoods(vec![(-1.0, true)]), Answer::Likelihoods(vec![(-3.0, false)])];
        let scores = task.score(&[item.clone(), item], &answers).unwrap();
        assert_eq!(scores[0].values, [1.0, 0.0]);
        assert!((scores[1].summary().0 - 2f64.exp()).abs() < 1e-12);
        assert!((scores[1].summary().1 - 2f64.exp()).abs() < 1e-12);
    }

    #[test]
    fn numbers_in_written_answers() {
        let task = find("gsm8k").unwrap().remove(0);
        let item = Item::Writing { query: "q".into(), answer: "2*9=18 <<2*9=18>>\n#### 1,018".into() };
        let cases = [
            ("so\n#### 1018", 1.0, 1.0),
            ("first 5, then\n#### 1,018.\nAnd 7 more", 1.0, 0.0),
            ("The answer is $1018.", 0.0, 1.0),
            ("18", 0.0, 0.0),
            ("nothing", 0.0, 0.0),
        ];
        for (text, strict, flexible) in cases {
            let scores = task.score(std::slice::from_ref(&item), &[Answer::Text(text.into())]).unwrap();
            assert_eq!((scores[0].values[0], scores[1].values[0]), (strict, flexible), "{text}");
        }
        let names: Vec<String> = task.metrics.iter().map(Metric::name).collect();
        assert_eq!(names, ["exact_match,strict-match", "exact_match,flexible-extract"]);
    }

    #[test]
    fn pairs_are_compared_item_by_item() {
        let scores = |values: Vec<f64>| Scores { metric: Metric::Acc, values };
        let (mut a, b) = (vec![1.0; 100], vec![1.0; 100]);
        a[..12].fill(0.0);
        let (a, b) = (scores(a), scores(b));
        let r = a.result("t", 0, Some(Comparison { against: "ref", scores: &b }));
        let p = r.paired.unwrap();
        assert_eq!((r.value, p.delta, p.flips, p.gained, p.lost), (0.88, -0.12, 12, 0, 12));
        assert!(p.p_value < 1e-3 && p.verdict == "worse", "{p:?}");
        let [low, high] = p.interval.unwrap();
        assert!(low > -0.2 && low < -0.12 && high > -0.12 && high < -0.05, "{low} {high}");
        let same = b.result("t", 0, Some(Comparison { against: "ref", scores: &b })).paired.unwrap();
        assert_eq!(
            (same.p_value, same.flips, same.verdict.as_str(), same.interval),
            (1.0, 0, "not distinguishable", Some([0.0, 0.0]))
        );
        // Lower is better.
        let perplexity =
            |v: f64| Scores { metric: Metric::Perplexity, values: (0..50).map(|i| -v - f64::from(i) * 0.01).collect() };
        let worse = perplexity(2.1).result("t", 0, Some(Comparison { against: "ref", scores: &perplexity(2.0) })).paired.unwrap();
        assert!(worse.delta > 0.0 && worse.verdict == "worse" && worse.flips == 0, "{worse:?}");
    }
}
