//! Nodes put together into pieces that are worth a cluster's while.

use super::plan::Plan;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Most elements of an array: Slurm's default limit is one more.
const MOST: usize = 1000;

/// Pieces of work that are alike, and do not need one another.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// What it does.
    pub name: String,
    /// Nodes by element, in the order in which they are run.
    pub elements: Vec<Vec<usize>>,
    /// Estimated seconds of the longest element.
    pub seconds: f64,
    /// Estimated memory of the largest.
    pub ram_bytes: u64,
    /// How often more memory is asked for than is estimated.
    pub doublings: u32,
}

/// Packs nodes, each array after those that it needs. An element has at least `least` seconds of work on so many processors, where a
/// model has so much.
pub fn pack(plan: &Plan, todo: &BTreeSet<usize>, cpus: usize, least: f64, doublings: &HashMap<usize, u32>) -> Vec<Array> {
    let seconds = |nodes: &[usize]| nodes.iter().map(|i| plan.nodes[*i].cost.cpu_seconds).sum::<f64>() / cpus.max(1) as f64;
    let mut arrays = Vec::new();
    let mut small: Vec<Vec<usize>> = Vec::new();
    let mut by_model: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &i in todo {
        by_model.entry(plan.nodes[i].model).or_default().push(i);
    }
    for (model, nodes) in by_model {
        let again = nodes.iter().any(|i| doublings.contains_key(i));
        if seconds(&nodes) <= least && !again {
            match small.last_mut() {
                Some(last) if seconds(last) + seconds(&nodes) <= least => last.extend(nodes),
                _ => small.push(nodes),
            }
            continue;
        }
        for (stage, nodes) in stages(plan, &nodes) {
            let name = format!("{}-{stage}", plan.models[model].name);
            // Nodes that were killed have more memory than others, and are tried alone.
            let (killed, fresh): (Vec<usize>, Vec<usize>) = nodes.iter().partition(|i| doublings.contains_key(i));
            arrays.extend(array(plan, &name, together(plan, &fresh, least, &seconds), 0, &seconds));
            let mut by_doublings: BTreeMap<u32, Vec<Vec<usize>>> = BTreeMap::new();
            killed.into_iter().for_each(|i| by_doublings.entry(doublings[&i]).or_default().push(vec![i]));
            for (n, elements) in by_doublings {
                arrays.extend(array(plan, &name, elements, n, &seconds));
            }
        }
    }
    arrays.extend(array(plan, "models", small, 0, &seconds));
    arrays
}

/// The nodes of a model by kind of work, in an order in which they can be done.
fn stages(plan: &Plan, nodes: &[usize]) -> Vec<(&'static str, Vec<usize>)> {
    let order =
        ["source", "observe", "calibrate", "reference", "encode", "quantize", "measure", "evaluate", "release", "publish"];
    let of = |stage: &str| nodes.iter().copied().filter(|i| plan.nodes[*i].op.name() == stage).collect::<Vec<_>>();
    order.into_iter().map(|s| (s, of(s))).filter(|(_, nodes)| !nodes.is_empty()).collect()
}

/// Nodes of a stage in elements. What shares a pass stays together; evaluations are cut as their artifacts are, by number.
fn together(plan: &Plan, nodes: &[usize], least: f64, seconds: &dyn Fn(&[usize]) -> f64) -> Vec<Vec<usize>> {
    let mut elements: Vec<Vec<usize>> = Vec::new();
    for &i in nodes {
        let pass = |j: &usize| plan.nodes[i].pass.is_some() && plan.nodes[*j].pass == plan.nodes[i].pass;
        match elements.last_mut() {
            Some(last) if last.iter().any(pass) && least > 0.0 || last_is_small(last, i, least, seconds) => last.push(i),
            _ => elements.push(vec![i]),
        }
    }
    elements
}

fn last_is_small(last: &[usize], next: usize, least: f64, seconds: &dyn Fn(&[usize]) -> f64) -> bool {
    seconds(last) + seconds(&[next]) <= least
}

fn array(plan: &Plan, name: &str, elements: Vec<Vec<usize>>, doublings: u32, seconds: &dyn Fn(&[usize]) -> f64) -> Vec<Array> {
    let ram = |nodes: &Vec<usize>| nodes.iter().map(|i| plan.nodes[*i].cost.ram_bytes).max().unwrap_or(0);
    let part = |part: &[Vec<usize>]| Array {
        name: name.to_string(),
        elements: part.to_vec(),
        seconds: part.iter().map(|nodes| seconds(nodes)).fold(0.0, f64::max),
        ram_bytes: part.iter().map(ram).max().unwrap_or(0),
        doublings,
    };
    elements.chunks(MOST).map(part).collect()
}
