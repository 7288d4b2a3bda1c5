//! Models for tests on the host, where there is no platform: a test says what a model answers.
//!
//! ```
//! use fnctl_sdk::{Model, Tensor, testing};
//!
//! testing::set_model("fraud", |_inputs| Ok(vec![("fraud_probability".into(), Tensor::new([1, 1], [0.9f32])?)]));
//! let outputs = Model::load("fraud")?.run([("features", Tensor::new([1, 1], [0.0f32])?)])?;
//! assert_eq!(outputs.first::<f32>()?, [0.9]);
//! # Ok::<(), fnctl_sdk::Error>(())
//! ```

use crate::error::Error;
use crate::tensor::Tensor;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

type Compute = dyn Fn(&[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error>;

thread_local! {
    static MODELS: RefCell<HashMap<String, Rc<Compute>>> = RefCell::new(HashMap::new());
}

/// Makes `Model::load(name)` succeed on this thread, with a model that answers as `compute` says.
pub fn set_model(
    name: &str,
    compute: impl Fn(&[(String, Tensor)]) -> Result<Vec<(String, Tensor)>, Error> + 'static,
) {
    MODELS.with_borrow_mut(|models| models.insert(name.to_owned(), Rc::new(compute)));
}

pub(crate) struct Context(Rc<Compute>);

impl Context {
    pub(crate) fn load(name: &str) -> Result<Self, Error> {
        let found = MODELS.with_borrow(|models| models.get(name).cloned());
        found.map(Self).ok_or_else(|| {
            Error::internal(format!(
                "no model '{name}' in this test; set it with fnctl_sdk::testing::set_model"
            ))
        })
    }

    pub(crate) fn compute(
        &self,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, Error> {
        (self.0)(&inputs)
    }
}
