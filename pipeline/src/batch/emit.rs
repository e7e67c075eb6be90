//! Plans in the words of systems that run tasks by themselves: a matrix for GitHub Actions, an Indexed Job for Kubernetes.
//!
//! Both know no order between the tasks of a job. A task is therefore all that is to be done of a model, and the store is what tasks
//! have in common: one that is repeated goes on where the last attempt stopped.

use super::plan::Plan;
use super::status::State;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// GitHub's limit for the jobs of a matrix.
const MATRIX: usize = 256;
/// Attempts at a task before it counts as failed.
const RETRIES: u32 = 3;
/// Exit codes that another attempt may change: a passing failure, and being killed.
const PASSING: [u8; 2] = [75, 137];

/// What is to be done of a model, or of several where there are more than tasks may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// For people.
    pub name: String,
    /// The nodes, as `task run --index` takes them.
    pub index: String,
    /// Memory in bytes.
    pub ram_bytes: u64,
}

/// All that is not done, model by model, in at most so many tasks.
pub fn tasks(plan: &Plan, states: &[State], most: usize) -> Vec<Task> {
    let left = |model: usize| {
        let of = plan.nodes.iter().enumerate().filter(move |(_, n)| n.model == model);
        of.filter(|(i, _)| states[*i] != State::Done).map(|(i, _)| i).collect::<Vec<_>>()
    };
    let models: Vec<(usize, Vec<usize>)> = (0..plan.models.len()).map(|m| (m, left(m))).filter(|(_, n)| !n.is_empty()).collect();
    let together = models.len().div_ceil(most.max(1)).max(1);
    let task = |some: &[(usize, Vec<usize>)]| {
        let nodes: Vec<usize> = some.iter().flat_map(|(_, nodes)| nodes.iter().copied()).collect();
        let names: Vec<&str> = some.iter().map(|(m, _)| plan.models[*m].folder.as_str()).collect();
        let ram_bytes = nodes.iter().map(|i| plan.nodes[*i].cost.ram_bytes).max().unwrap_or(0);
        Task { name: names.join(", "), index: ranges(&nodes), ram_bytes }
    };
    models.chunks(together).map(task).collect()
}

/// `3-7,9`.
fn ranges(nodes: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for &i in nodes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == i => *last = i,
            _ => parts.push((i, i)),
        }
    }
    let part = |(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

/// A matrix, for `strategy: { matrix: ${{ fromJSON(…) }} }`.
pub fn github(plan: &Plan, states: &[State]) -> Value {
    let include: Vec<Value> =
        tasks(plan, states, MATRIX).into_iter().map(|t| json!({ "name": t.name, "plan": plan.key, "index": t.index })).collect();
    json!({ "include": include })
}

/// How pods are made.
#[derive(Debug, Clone)]
pub struct Pods<'a> {
    /// The image that has the program.
    pub image: &'a str,
    /// The store, which all pods reach.
    pub store: &'a str,
    /// Processors of a pod.
    pub cpus: usize,
}

/// An Indexed Job as YAML. Keys of store and hub come from a secret named `bitsmith`, if there is one.
pub fn k8s(plan: &Plan, states: &[State], pods: &Pods<'_>) -> String {
    let tasks = tasks(plan, states, usize::MAX);
    let name = format!("bitsmith-{}", &plan.key[..12]);
    let most = tasks.iter().map(|t| t.ram_bytes).max().unwrap_or(0).div_ceil(1 << 20) * 13 / 10;
    let mut script = String::from("nodes=(");
    tasks.iter().for_each(|t| {
        let _ = write!(script, " {}", t.index);
    });
    let _ = write!(
        script,
        " ); exec bitsmith --threads {} task run --plan {} --index \"${{nodes[$JOB_COMPLETION_INDEX]}}\" --store {}",
        pods.cpus, plan.key, pods.store
    );
    let passing = PASSING.map(|c| c.to_string()).join(", ");
    format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: {name}\nspec:\n  completionMode: Indexed\n  completions: {n}\n  \
         parallelism: {n}\n  backoffLimitPerIndex: {RETRIES}\n  podFailurePolicy:\n    rules:\n      - action: Ignore\n        \
         onPodConditions:\n          - type: DisruptionTarget\n      - action: FailIndex\n        onExitCodes:\n          \
         operator: NotIn\n          values: [{passing}]\n  template:\n    spec:\n      restartPolicy: Never\n      containers:\n        \
         - name: bitsmith\n          image: {image}\n          command: [bash, -c]\n          args:\n            - {script}\n          \
         envFrom:\n            - secretRef:\n                name: bitsmith\n                optional: true\n          resources:\n            \
         requests:\n              cpu: {cpus}\n              memory: {most}Mi\n            limits:\n              memory: {limit}Mi\n",
        n = tasks.len(),
        image = text(pods.image),
        script = text(&script),
        cpus = pods.cpus,
        limit = 2 * most,
    )
}

/// A YAML text: JSON's are.
fn text(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_joined() {
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
        assert_eq!(ranges(&[]), "");
    }
}
