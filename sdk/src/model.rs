//! Models, by the names that `function.toml` declares.

use crate::error::Error;
use crate::tensor::{Element, Tensor};

/// A loaded model. Loading it is cheap: the platform has it resident and shares it.
pub struct Model {
    #[cfg(target_family = "wasm")]
    context: crate::wasm::Context,
    #[cfg(not(target_family = "wasm"))]
    context: crate::testing::Context,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Model")
    }
}

impl Model {
    /// The model that `function.toml` declares under this name.
    pub fn load(name: &str) -> Result<Self, Error> {
        #[cfg(target_family = "wasm")]
        let context = crate::wasm::Context::load(name)?;
        #[cfg(not(target_family = "wasm"))]
        let context = crate::testing::Context::load(name)?;
        Ok(Self { context })
    }

    /// Computes: inputs by name in, outputs by name out.
    pub fn run<'a>(
        &self,
        inputs: impl IntoIterator<Item = (&'a str, Tensor)>,
    ) -> Result<Outputs, Error> {
        self.context
            .compute(
                inputs
                    .into_iter()
                    .map(|(name, tensor)| (name.to_owned(), tensor))
                    .collect(),
            )
            .map(Outputs)
    }
}

/// The outputs of a model, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs(pub(crate) Vec<(String, Tensor)>);

impl Outputs {
    /// An output by its name.
    pub fn get(&self, name: &str) -> Result<&Tensor, Error> {
        let found = self.0.iter().find(|(output, _)| output == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| {
            let known: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            Error::internal(format!(
                "the model has no output '{name}'; it has: {}",
                known.join(", ")
            ))
        })
    }

    /// The elements of the first output.
    pub fn first<E: Element>(&self) -> Result<Vec<E>, Error> {
        let (_, tensor) = self
            .0
            .first()
            .ok_or_else(|| Error::internal("the model has no output"))?;
        tensor.elements()
    }

    /// Names and tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.0.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}
