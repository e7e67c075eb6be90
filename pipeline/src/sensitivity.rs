//! How much the model's predictions suffer from errors in each tensor.
//!
//! Small errors of different tensors add up: the divergence is close to `Σ a_t · e_t` with the relative error `e_t` of a tensor's
//! output and a factor `a_t` that is the tensor's own (HIGGS, arXiv 2411.17525). A few probes find the factors: divergences measured on
//! little text with some tensors in a candidate format and the rest dense.

use crate::candidates::Candidates;
use crate::context::Context;
use bitsmith_datasets::EvalWindows;
use bitsmith_eval::{Change, Perturber};
use bitsmith_formats::Result;
use bitsmith_runtime::Role;
use std::collections::BTreeMap;

/// Up to so many tensors, each has a probe of its own; beyond, each layer and each part has one.
const SINGLE: usize = 64;
/// Rounds of proportional fitting, each of which goes through all probes.
const ROUNDS: usize = 100;
/// Windows of a text for each that probes use.
const THIN: usize = 8;

/// The factors `a_t`.
pub type Factors = BTreeMap<Role, f64>;

/// A few windows of each domain, spread evenly.
pub fn thinned(eval: &EvalWindows) -> EvalWindows {
    let mut set = eval.set.clone();
    let (mut windows, mut domain_of) = (Vec::new(), Vec::new());
    for domain in 0..set.domains.len() {
        let of: Vec<usize> = (0..set.windows.len()).filter(|w| set.domain_of[*w] == domain).collect();
        for w in of.chunks(THIN).map(|chunk| chunk[chunk.len() / 2]) {
            windows.push(set.windows[w].clone());
            domain_of.push(domain);
        }
    }
    (set.windows, set.domain_of) = (windows, domain_of);
    EvalWindows { set, style: eval.style }
}

/// Tensors that are probed together.
fn groups(roles: &[Role]) -> Vec<Vec<Role>> {
    if roles.len() <= SINGLE {
        return roles.iter().map(|r| vec![*r]).collect();
    }
    let mut by_layer: BTreeMap<_, Vec<Role>> = BTreeMap::new();
    for role in roles.iter().filter(|r| r.layer.is_some()) {
        by_layer.entry((role.layer, None)).or_default().push(*role);
        by_layer.entry((None, Some(role.part))).or_default().push(*role);
    }
    let outside = roles.iter().filter(|r| r.layer.is_none()).map(|r| vec![*r]);
    outside.chain(by_layer.into_values()).collect()
}

/// Finds the factors by probes in one of the columns.
pub fn probe(perturber: &mut Perturber<'_>, candidates: &Candidates<'_>, column: usize, context: &Context) -> Result<Factors> {
    let groups = groups(&candidates.roles());
    context.progress.start("probe", groups.len() as u64);
    let mut measured = Vec::new();
    for some in groups.chunks(perturber.together()) {
        let change =
            |roles: &Vec<Role>| Change { roles: roles.clone(), values: Box::new(move |role| candidates.decoded(role, column)) };
        let changes: Vec<Change> = some.iter().map(change).collect();
        for effect in perturber.measure(&changes)? {
            let domains = perturber.by_domain(&effect);
            measured.push(domains.iter().map(|m| m.kld).sum::<f64>() / domains.len() as f64);
        }
        context.progress.advance(some.len() as u64);
    }
    context.progress.finish();
    let error = |role: &Role| candidates.errors(*role)[column];
    Ok(fit(&groups, &measured, &error))
}

/// Iterative proportional fitting: factors of 1 at first, scaled until the sum over each group is its measurement. Where each tensor
/// belongs to a layer and a part, the result is the product of a factor per layer and one per part.
fn fit(groups: &[Vec<Role>], measured: &[f64], error: &dyn Fn(&Role) -> f64) -> Factors {
    let mut factors: Factors = groups.iter().flatten().map(|r| (*r, 1.0)).collect();
    for _ in 0..ROUNDS {
        for (roles, measured) in groups.iter().zip(measured) {
            let sum: f64 = roles.iter().map(|r| factors[r] * error(r)).sum();
            if sum > 0.0 {
                roles.iter().for_each(|r| *factors.get_mut(r).expect("has one") *= measured / sum);
            }
        }
    }
    factors
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_runtime::Part;

    #[test]
    fn fitted_factors_are_those_of_layers_and_parts() {
        let parts = [Part::AttnQ, Part::AttnV, Part::FfnDown];
        let roles: Vec<Role> = (0..30).flat_map(|l| parts.map(|p| Role::layer(l, p))).collect();
        let groups = groups(&roles);
        assert_eq!(groups.len(), 33);
        let truth = |r: &Role| (1.0 + r.layer.unwrap() as f64) * (r.part as usize as f64);
        let error = |r: &Role| 1.0 + ((r.layer.unwrap() * 7 + r.part as usize) % 5) as f64;
        let measured: Vec<f64> = groups.iter().map(|g| g.iter().map(|r| truth(r) * error(r)).sum()).collect();
        let factors = fit(&groups, &measured, &error);
        for role in &roles {
            assert!((factors[role] / truth(role) - 1.0).abs() < 1e-6, "{role} {} {}", factors[role], truth(role));
        }
        // Few tensors are probed one by one.
        assert!(super::groups(&roles[..9]).iter().all(|g| g.len() == 1));
    }
}
