//! What a guest passes to a model, checked against the graph: names, types, shapes and lengths. Nothing native is involved,
//! so that the same check stands on both sides of an inference host's boundary.

use fnctl_core::inference::{InferenceError, ModelInfo, Port, Tensor};

/// An input that fits the graph.
pub(crate) struct Resolved {
    /// Which input of the graph.
    pub(crate) index: usize,
    /// What the graph wants its shape to be called.
    pub(crate) shape: Vec<i64>,
    pub(crate) tensor: Tensor,
}

/// Checks that every input of the graph is there once, and fits.
pub(crate) fn resolve(
    info: &ModelInfo,
    inputs: Vec<(String, Tensor)>,
) -> Result<Vec<Resolved>, InferenceError> {
    let mut resolved = Vec::with_capacity(inputs.len().min(info.inputs.len()));
    for (name, tensor) in inputs {
        resolved.push((index_of(info, &name)?, tensor));
    }
    check(info, resolved)
}

/// The same for inputs that are named by their index.
pub(crate) fn check(
    info: &ModelInfo,
    inputs: Vec<(usize, Tensor)>,
) -> Result<Vec<Resolved>, InferenceError> {
    let mut seen = vec![false; info.inputs.len()];
    let mut resolved = Vec::with_capacity(seen.len());
    for (index, tensor) in inputs {
        let (Some(port), Some(seen)) = (info.inputs.get(index), seen.get_mut(index)) else {
            return Err(InferenceError::invalid("no such input"));
        };
        if std::mem::replace(seen, true) {
            return Err(InferenceError::invalid(format!(
                "input '{}' is given twice",
                port.name
            )));
        }
        tensor.check()?;
        let shape = shape_for(port, &tensor)?;
        resolved.push(Resolved {
            index,
            shape,
            tensor,
        });
    }
    if let Some(missing) = seen.iter().position(|seen| !seen) {
        let name = info
            .inputs
            .get(missing)
            .map_or("", |port| port.name.as_str());
        return Err(InferenceError::invalid(format!(
            "input '{name}' is missing"
        )));
    }
    Ok(resolved)
}

/// An input by its name, or by its index in digits, as guests of the older ABI name them.
fn index_of(info: &ModelInfo, name: &str) -> Result<usize, InferenceError> {
    let by_name = info.inputs.iter().position(|port| port.name == name);
    let by_index = || {
        name.parse::<usize>()
            .ok()
            .filter(|index| *index < info.inputs.len())
    };
    by_name.or_else(by_index).ok_or_else(|| {
        let known: Vec<_> = info.inputs.iter().map(|port| port.name.as_str()).collect();
        let name: String = name.chars().take(128).collect();
        InferenceError::invalid(format!(
            "the model has no input '{}'; it has: {}",
            name.escape_debug(),
            known.join(", ")
        ))
    })
}

/// The shape a tensor is bound with: the guest's, if the graph accepts it. wasi-nn cannot say "scalar" in every
/// language, so one element of shape [1] also fits a graph's scalar.
fn shape_for(port: &Port, tensor: &Tensor) -> Result<Vec<i64>, InferenceError> {
    if tensor.ty != port.ty {
        return Err(InferenceError::invalid(format!(
            "input '{}' takes {}, not {}",
            port.name,
            port.ty.as_str(),
            tensor.ty.as_str()
        )));
    }
    if port.shape.is_empty() && tensor.dimensions == [1] {
        return Ok(Vec::new());
    }
    let fits = port.shape.len() == tensor.dimensions.len()
        && port
            .shape
            .iter()
            .zip(&tensor.dimensions)
            .all(|(want, have)| *want < 0 || *want == i64::from(*have));
    if fits {
        Ok(tensor
            .dimensions
            .iter()
            .map(|size| i64::from(*size))
            .collect())
    } else {
        Err(InferenceError::invalid(format!(
            "input '{}' takes shape {:?} (-1 is any size), not {:?}",
            port.name, port.shape, tensor.dimensions
        )))
    }
}
