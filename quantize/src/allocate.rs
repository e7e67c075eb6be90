//! Bit allocation: one choice for every item, so that the summed cost is least and the summed weight within a budget. This is the
//! multiple-choice knapsack, solved exactly.
//!
//! Dynamic programming over the undominated partial sums, with two bounds that keep them few: the linear relaxation of what is left
//! says what a partial sum can reach at best, a rounded solution of the relaxation what has to be beaten (Kellerer, Pferschy and
//! Pisinger, *Knapsack Problems*, 2004, chapter 11).

/// One way to treat an item.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// What it takes of the budget: bytes, for example.
    pub weight: f64,
    /// What is to be small in sum: divergence, for example.
    pub cost: f64,
}

/// Partial sums are dropped that cannot be better than what is known by more than this fraction: sums of floating-point numbers are not
/// more exact.
const EXACT: f64 = 1e-12;

/// The number of the best choice for each item, among those whose weights sum up to at most `capacity`; `None` if there are none.
/// Weights that are whole numbers are summed exactly, others up to rounding.
/// Weights and costs must be finite and not negative. Of several best solutions it is always the same one.
pub fn allocate(items: &[Vec<Choice>], capacity: f64) -> Option<Vec<usize>> {
    let fronts: Vec<Vec<(usize, Choice)>> = items.iter().map(|choices| front(choices)).collect();
    if fronts.iter().any(Vec::is_empty) {
        return None;
    }
    let bounds = Bounds::new(&fronts);
    let (mut best_cost, rounded) = bounds.rounded(&fronts, capacity)?;
    let mut layers: Vec<Vec<State>> = vec![vec![State { weight: 0.0, cost: 0.0, from: 0, choice: 0 }]];
    for (i, front) in fronts.iter().enumerate() {
        let rest = &bounds.suffixes[i + 1];
        let mut states = Vec::new();
        for (from, state) in layers[i].iter().enumerate() {
            for (choice, c) in front.iter().map(|(_, c)| c).enumerate() {
                let (weight, cost) = (state.weight + c.weight, state.cost + c.cost);
                // An empty rest is exact: ties with the rounded solution stay with that.
                if rest.least_cost(capacity - weight).is_some_and(|more| cost + more < best_cost * (1.0 - EXACT)) {
                    states.push(State { weight, cost, from, choice });
                }
            }
        }
        states.sort_by(|a, b| a.weight.total_cmp(&b.weight).then(a.cost.total_cmp(&b.cost)));
        let mut least = f64::INFINITY;
        states.retain(|s| {
            let better = s.cost < least;
            least = least.min(s.cost);
            better
        });
        layers.push(states);
    }
    let Some((mut at, last)) = layers[items.len()].iter().enumerate().min_by(|a, b| a.1.cost.total_cmp(&b.1.cost)) else {
        return Some(rounded);
    };
    best_cost = best_cost.min(last.cost);
    debug_assert!(best_cost == last.cost);
    let mut chosen = vec![0; items.len()];
    for i in (0..items.len()).rev() {
        let state = &layers[i + 1][at];
        (chosen[i], at) = (fronts[i][state.choice].0, state.from);
    }
    Some(chosen)
}

/// A partial sum over the first items.
struct State {
    weight: f64,
    cost: f64,
    /// The state before the last item.
    from: usize,
    /// Of the last item's front.
    choice: usize,
}

/// The choices that no other beats in both, by weight, with their numbers.
fn front(choices: &[Choice]) -> Vec<(usize, Choice)> {
    let mut sorted: Vec<(usize, Choice)> = choices.iter().copied().enumerate().collect();
    sorted.sort_by(|a, b| a.1.weight.total_cmp(&b.1.weight).then(a.1.cost.total_cmp(&b.1.cost)));
    let mut least = f64::INFINITY;
    sorted.retain(|(_, c)| {
        let better = c.cost < least;
        least = least.min(c.cost);
        better
    });
    sorted
}

/// A step along the lower convex hull of an item's front.
#[derive(Clone, Copy)]
struct Step {
    item: usize,
    /// Where on the front it leads.
    to: usize,
    weight: f64,
    gain: f64,
}

impl Step {
    /// The best gains per weight first.
    fn order(a: &Step, b: &Step) -> std::cmp::Ordering {
        (b.gain * a.weight).total_cmp(&(a.gain * b.weight)).then(a.item.cmp(&b.item)).then(a.to.cmp(&b.to))
    }
}

/// The steps along the lower convex hull of a front.
fn steps(item: usize, front: &[(usize, Choice)]) -> Vec<Step> {
    let mut hull: Vec<usize> = Vec::new();
    let step = |from: usize, to: usize| {
        let (a, b) = (front[from].1, front[to].1);
        Step { item, to, weight: b.weight - a.weight, gain: a.cost - b.cost }
    };
    for to in 0..front.len() {
        while let [.., before, last] = hull[..] {
            let (first, second) = (step(before, last), step(last, to));
            if second.gain * first.weight < first.gain * second.weight {
                break;
            }
            hull.pop();
        }
        hull.push(to);
    }
    hull.windows(2).map(|w| step(w[0], w[1])).collect()
}

/// The linear relaxation of the items from one on: their lightest choices, and all steps by gain per weight, summed up.
struct Suffix {
    weight: f64,
    cost: f64,
    /// Weight and gain of the first so many steps.
    sums: Vec<(f64, f64)>,
}

impl Suffix {
    /// What the items cost at least within this weight; `None` if they do not fit.
    fn least_cost(&self, capacity: f64) -> Option<f64> {
        let room = capacity - self.weight;
        // Sums in another order may differ in the last bits. Whole numbers of bytes do not.
        if room < -EXACT * (self.weight + capacity.abs()) {
            return None;
        }
        let after = self.sums.partition_point(|(weight, _)| *weight <= room);
        let (weight, gain) = self.sums[after.saturating_sub(1)];
        let part = self.sums.get(after).map_or(0.0, |next| (next.1 - gain) * ((room - weight).max(0.0) / (next.0 - weight)));
        Some(self.cost - gain - part)
    }
}

struct Bounds {
    /// From each item on; the last is empty.
    suffixes: Vec<Suffix>,
    /// Of all items.
    steps: Vec<Step>,
}

impl Bounds {
    fn new(fronts: &[Vec<(usize, Choice)>]) -> Bounds {
        let mut steps: Vec<Step> = Vec::new();
        let mut suffixes = vec![Suffix { weight: 0.0, cost: 0.0, sums: vec![(0.0, 0.0)] }];
        for (item, front) in fronts.iter().enumerate().rev() {
            steps.extend(self::steps(item, front));
            steps.sort_by(Step::order);
            let sums = steps.iter().scan((0.0, 0.0), |sum, s| {
                *sum = (sum.0 + s.weight, sum.1 + s.gain);
                Some(*sum)
            });
            let sums = std::iter::once((0.0, 0.0)).chain(sums).collect();
            let (lightest, rest) = (front[0].1, &suffixes[suffixes.len() - 1]);
            suffixes.push(Suffix { weight: lightest.weight + rest.weight, cost: lightest.cost + rest.cost, sums });
        }
        suffixes.reverse();
        Bounds { suffixes, steps }
    }

    /// A solution: the relaxation's steps as far as they fit. Its cost, and the choices by their own numbers.
    fn rounded(&self, fronts: &[Vec<(usize, Choice)>], capacity: f64) -> Option<(f64, Vec<usize>)> {
        let mut at = vec![0; fronts.len()];
        let mut closed = vec![false; fronts.len()];
        let mut weight: f64 = fronts.iter().map(|f| f[0].1.weight).sum();
        if weight > capacity {
            return None;
        }
        for step in &self.steps {
            if !closed[step.item] && weight + step.weight <= capacity {
                (at[step.item], weight) = (step.to, weight + step.weight);
            } else {
                closed[step.item] = true;
            }
        }
        // Summed in the order in which partial sums are.
        let cost = at.iter().zip(fronts).map(|(at, front)| front[*at].1.cost).sum();
        Some((cost, at.iter().zip(fronts).map(|(at, front)| front[*at].0).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All combinations.
    fn brute_force(items: &[Vec<Choice>], capacity: f64) -> Option<f64> {
        let mut sums = vec![(0.0, 0.0)];
        for item in items {
            sums = sums.iter().flat_map(|(w, c)| item.iter().map(move |o| (w + o.weight, c + o.cost))).collect();
        }
        sums.into_iter().filter(|(w, _)| *w <= capacity).map(|(_, c)| c).min_by(f64::total_cmp)
    }

    fn sums(items: &[Vec<Choice>], chosen: &[usize]) -> (f64, f64) {
        items.iter().zip(chosen).fold((0.0, 0.0), |(w, c), (item, i)| (w + item[*i].weight, c + item[*i].cost))
    }

    fn items(weights: impl Strategy<Value = u32> + Clone) -> impl Strategy<Value = Vec<Vec<Choice>>> {
        let choice = (weights, 0u32..1000).prop_map(|(w, c)| Choice { weight: f64::from(w), cost: f64::from(c) / 7.0 });
        prop::collection::vec(prop::collection::vec(choice, 1..5), 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn no_combination_is_better(items in items(0..60u32), capacity in 0..300u32) {
            let capacity = f64::from(capacity);
            let best = brute_force(&items, capacity);
            match allocate(&items, capacity) {
                None => prop_assert!(best.is_none()),
                Some(chosen) => {
                    let (weight, cost) = sums(&items, &chosen);
                    prop_assert!(weight <= capacity, "{weight} {capacity}");
                    let best = best.unwrap();
                    prop_assert!(cost <= best + 1e-9 * best.max(1.0), "{cost} {best}");
                }
            }
        }

        /// Weights that are no whole numbers, as a budget of divergence has.
        #[test]
        fn weights_may_be_any_numbers(items in items(0..60u32), capacity in 0..300u32) {
            let scaled: Vec<Vec<Choice>> =
                items.iter().map(|i| i.iter().map(|c| Choice { weight: c.weight.sqrt() * 1e-4, cost: c.cost }).collect()).collect();
            let capacity = f64::from(capacity).sqrt() * 3e-4;
            let (found, best) = (allocate(&scaled, capacity), brute_force(&scaled, capacity));
            prop_assert_eq!(found.is_some(), best.is_some());
            if let (Some(chosen), Some(best)) = (found, best) {
                let (weight, cost) = sums(&scaled, &chosen);
                prop_assert!(weight <= capacity * (1.0 + 1e-9) && cost <= best + 1e-9 * best.max(1.0), "{} {}", cost, best);
            }
        }
    }

    #[test]
    fn as_many_tensors_as_large_models_have() {
        // Like 80 layers of 7 matrices and two tables in 12 formats: sensitivities over four orders of magnitude.
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        let bits = [2.06, 2.31, 2.56, 2.63, 3.06, 3.44, 3.44, 4.25, 4.5, 5.5, 6.56, 8.5];
        let mut item = |_| {
            let (size, sensitivity) = (((1.0 + 28.0 * random()) as u64 * (1 << 20)) as f64, (9.0 * random()).exp());
            let choice = |b: &f64| Choice {
                weight: (size * b / 8.0 / 32.0).ceil() * 32.0,
                cost: sensitivity * size * (-1.386 * b).exp() * (1.0 + 0.1 * random()),
            };
            bits.iter().map(choice).collect::<Vec<_>>()
        };
        let items: Vec<Vec<Choice>> = (0..562).map(&mut item).collect();
        let total: f64 = items.iter().map(|i| i[8].weight).sum();
        let chosen = allocate(&items, total).unwrap();
        let (weight, cost) = sums(&items, &chosen);
        let fronts: Vec<_> = items.iter().map(|i| front(i)).collect();
        let bounds = Bounds::new(&fronts);
        assert!(weight <= total && weight > 0.9999 * total);
        let (relaxed, rounded) = (bounds.suffixes[0].least_cost(total).unwrap(), bounds.rounded(&fronts, total).unwrap().0);
        assert!(relaxed <= cost && cost <= rounded && cost < 1.0001 * relaxed, "{relaxed} {cost} {rounded}");
        assert_eq!(allocate(&items, 0.4 * total), None);
    }
}
