//! Scores apart from the questions: put together of shares, and compared with another model's.

use bitsmith_eval::TaskResult;
use bitsmith_eval::tasks::harness::Run;
use bitsmith_eval::tasks::{Comparison, Scores, groups};
use bitsmith_formats::{Error, Result};
use serde::{Deserialize, Serialize};

/// A model's scores in a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    /// The task's name.
    pub task: String,
    /// Groups that it belongs to, the smallest first.
    pub groups: Vec<String>,
    /// Examples before each question.
    pub shots: usize,
    /// What tells its questions from any others.
    pub digest: String,
    /// By metric, the one that counts first; none if programs that the model wrote were not run.
    pub scores: Vec<Scores>,
}

impl Scored {
    pub(super) fn of(run: &Run) -> Scored {
        Scored {
            task: run.task.name.clone(),
            groups: run.task.groups.clone(),
            shots: run.shots,
            digest: run.digest.clone(),
            scores: run.scores.clone(),
        }
    }

    fn is_of_the_same_questions(&self, other: &Scored) -> bool {
        (&self.task, &self.digest, self.shots) == (&other.task, &other.digest, other.shots)
    }
}

/// The scores of all items, given those of shares in order.
pub fn join(shares: Vec<Vec<Scored>>) -> Result<Vec<Scored>> {
    let mut shares = shares.into_iter();
    let mut whole = shares.next().unwrap_or_default();
    for share in shares {
        same_questions(&whole, &share)?;
        for (whole, share) in whole.iter_mut().zip(share) {
            for (scores, more) in whole.scores.iter_mut().zip(share.scores) {
                scores.values.extend(more.values);
            }
        }
    }
    Ok(whole)
}

/// Errors: corrupt, unless both are scores of the same questions.
pub fn same_questions(a: &[Scored], b: &[Scored]) -> Result<()> {
    match a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is_of_the_same_questions(b) && a.scores.len() == b.scores.len()) {
        true => Ok(()),
        false => {
            Err(Error::corrupt("the questions of a task changed while models were asked").hint("begin again with another store"))
        }
    }
}

/// The results of every task and group; with another model's scores of the same items, compared item by item.
pub fn results(scored: &[Scored], against: Option<(&str, &[Scored])>) -> Vec<TaskResult> {
    let mut results = Vec::new();
    for (i, of) in scored.iter().enumerate() {
        for (k, scores) in of.scores.iter().enumerate() {
            let other = against.and_then(|(model, theirs)| Some(Comparison { against: model, scores: theirs[i].scores.get(k)? }));
            results.push(scores.result(&of.task, of.shots, other));
        }
    }
    for name in groups(&scored.iter().map(|s| &s.groups[..]).collect::<Vec<_>>()) {
        results.extend(group(&name, scored, against));
    }
    results
}

/// A group's first metric, over the items of all its tasks, as the harness weighs tasks by their size.
fn group(name: &str, scored: &[Scored], against: Option<(&str, &[Scored])>) -> Option<TaskResult> {
    let members: Vec<usize> = (0..scored.len()).filter(|i| scored[*i].groups.iter().any(|g| g == name)).collect();
    let joined = |of: &[Scored]| {
        let scores: Vec<&Scores> = members.iter().filter_map(|i| of[*i].scores.first()).collect();
        let metric = scores.first()?.metric.clone();
        Some(Scores { metric, values: scores.iter().flat_map(|s| s.values.iter().copied()).collect() })
    };
    let scores = joined(scored)?;
    let other = against.and_then(|(model, theirs)| Some((model, joined(theirs)?)));
    let comparison = other.as_ref().map(|(against, scores)| Comparison { against, scores });
    let mut result = scores.result(name, scored[*members.first()?].shots, comparison);
    result.stderr = pooled(members.iter().filter_map(|i| scored[*i].scores.first()));
    Some(result)
}

/// The harness's standard error of a group: from the variance within its tasks.
fn pooled<'a>(scores: impl Iterator<Item = &'a Scores>) -> f64 {
    let (mut square, mut n, mut k) = (0.0, 0.0, 0.0);
    for scores in scores {
        let (size, stderr) = (scores.values.len() as f64, scores.summary().1);
        square += (size - 1.0) * stderr * stderr * size;
        n += size;
        k += 1.0;
    }
    if n > k { (square / (n - k) / n).sqrt() } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_eval::tasks::Metric;

    fn scored(task: &str, values: &[f64]) -> Scored {
        let scores = vec![Scores { metric: Metric::Acc, values: values.to_vec() }];
        Scored { task: task.into(), groups: vec!["all".into()], shots: 0, digest: task.into(), scores }
    }

    #[test]
    fn shares_make_up_the_whole() {
        let whole = vec![scored("a", &[1.0, 0.0, 1.0, 1.0]), scored("b", &[0.0, 1.0])];
        let shares = vec![
            vec![scored("a", &[1.0, 0.0]), scored("b", &[0.0])],
            vec![scored("a", &[1.0]), scored("b", &[])],
            vec![scored("a", &[1.0]), scored("b", &[1.0])],
        ];
        assert_eq!(join(shares.clone()).unwrap(), whole);
        let found = results(&whole, Some(("other", &[scored("a", &[1.0, 1.0, 1.0, 1.0]), scored("b", &[0.0, 1.0])])));
        assert_eq!(found.iter().map(|r| (r.task.as_str(), r.n)).collect::<Vec<_>>(), [("a", 4), ("b", 2), ("all", 6)]);
        assert_eq!(found[0].paired.as_ref().map(|p| (p.flips, p.lost)), Some((1, 1)));
        let mut changed = shares;
        changed[1][0].digest = "others".into();
        assert!(join(changed).is_err());
    }
}
