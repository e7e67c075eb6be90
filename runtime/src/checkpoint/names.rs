//! Which of a checkpoint's tensors are the text model's, which belong to a vision tower, and which to layers after the last.

use crate::arch::vision::{Sorted, Tower, Wrapper};
use crate::arch::{ContainerKind, TensorMap};
use crate::role::{Part, Role};
use crate::spec::ModelSpec;
use bitsmith_formats::{Result, TensorStore};
use std::collections::BTreeMap;

/// Sorts the tensors of the text model, layers after the last included, if they are all there.
pub(super) fn with_extra_layers(
    spec: ModelSpec,
    kind: ContainerKind,
    names: &BTreeMap<String, String>,
) -> Result<(ModelSpec, TensorMap)> {
    use Part::{NextnEmbd, NextnEmbdNorm, NextnHiddenNorm, NextnOutput, NextnOutputNorm, NextnProj};
    const PARTS: [Part; 6] = [NextnProj, NextnEmbdNorm, NextnHiddenNorm, NextnEmbd, NextnOutput, NextnOutputNorm];
    let map = |spec: &ModelSpec| spec.arch.map_tensors(spec, kind, names.keys().map(String::as_str));
    let has = |layer: usize, part| {
        let places = spec.arch.places(&spec, kind, Role::layer(layer, part));
        places.is_some_and(|places| names.contains_key(&places[0].name))
    };
    let extra = (spec.n_layers..).take_while(|l| spec.arch.extra_layers && has(*l, NextnProj)).count();
    if extra > 0 {
        let parts: Vec<Part> = PARTS.into_iter().filter(|p| has(spec.n_layers, *p)).collect();
        let whole = spec.with_mtp(extra, &parts);
        // Copies of a model may have lost some of their tensors; what is left is of no use.
        if let Ok(found) = map(&whole) {
            return Ok((whole, found));
        }
    }
    let found = map(&spec)?;
    Ok((spec.without_mtp(), found))
}

/// The names in a checkpoint.
pub(super) struct Names {
    /// The text model's tensors: as it has them by itself, and as the checkpoint has them.
    pub text: BTreeMap<String, String>,
    pub tower: Option<Tower>,
    /// What carries nothing.
    pub dropped: Vec<String>,
}

impl Names {
    /// The names in a container, of a wrapped model if there is a wrapper.
    pub fn of(store: &dyn TensorStore, wrapper: Option<&'static Wrapper>) -> Result<Names> {
        let all = store.tensors().iter().map(|t| t.name.as_str());
        Ok(match wrapper {
            None => Names { text: all.map(|n| (n.to_string(), n.to_string())).collect(), tower: None, dropped: Vec::new() },
            Some(wrapper) => {
                let Sorted { text, tower, dropped } = wrapper.sort(all)?;
                // Some copies of wrapped models are of the text model alone.
                let tower = (!tower.tensors.is_empty()).then_some(tower);
                Names { text, tower, dropped }
            }
        })
    }
}
