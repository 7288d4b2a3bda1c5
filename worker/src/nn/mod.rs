//! wasi-nn on the host: one implementation behind the WIT and the witx bindings.
//!
//! Every mistake of a guest is an [`InferenceError`] for the guest; none is a panic here.

pub(crate) mod wit;
pub(crate) mod witx;

use bytes::Bytes;
use fnctl_core::config::InferenceIsolation;
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{
    Compute, Computed, InferenceError, InferenceErrorKind, KeepWish, LoadModel, ModelInfo,
    ModelSource, SessionId, Tensor,
};
use fnctl_core::ladder::RungCost;
use fnctl_core::ports::InferenceHost;
use fnctl_core::trace::{Step, Trace};
use fnctl_core::version::Version;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that the host holds for a guest's tensors; given back when dropped.
pub(crate) struct Charge {
    held: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A tensor on the host, and its share of what its guest may keep there.
pub(crate) struct HeldTensor {
    pub(crate) tensor: Tensor,
    charge: Charge,
}

impl HeldTensor {
    /// Splits it: the tensor goes to the model, the charge must be kept until it is back.
    pub(crate) fn into_parts(self) -> (Tensor, Charge) {
        (self.tensor, self.charge)
    }
}

/// Most graphs and execution contexts that one sandbox may hold at once.
pub(crate) const MAX_HANDLES: usize = 256;

/// One use of a session; given back when dropped.
pub(crate) struct ModelLease {
    host: Arc<dyn InferenceHost>,
    pub(crate) session: SessionId,
    pub(crate) info: Arc<ModelInfo>,
    /// What loading it took, and the memory it takes.
    pub(crate) cost: RungCost,
    function: FunctionName,
    /// Until when its function wants it kept afterwards, if its policy says so.
    kept: Mutex<Option<Instant>>,
}

impl ModelLease {
    /// The session of a declared model.
    pub(crate) async fn of_artifact(
        host: &Arc<dyn InferenceHost>,
        digest: Digest,
        path: PathBuf,
        (function, isolation): (&FunctionName, InferenceIsolation),
        deadline: Instant,
    ) -> Result<Self, InferenceError> {
        let source = ModelSource::Artifact { digest, path };
        Self::load(
            host,
            LoadModel {
                source,
                function: function.clone(),
                isolation,
                deadline,
            },
        )
        .await
    }

    async fn load(
        host: &Arc<dyn InferenceHost>,
        request: LoadModel,
    ) -> Result<Self, InferenceError> {
        let function = request.function.clone();
        let loaded = host.load(request).await?;
        Ok(Self {
            host: host.clone(),
            session: loaded.session,
            info: loaded.info,
            cost: loaded.cost,
            function,
            kept: Mutex::new(None),
        })
    }

    /// Its function wants the session kept until then, after this use.
    pub(crate) fn keep(&self, until: Instant) {
        *self.kept.lock() = Some(until);
    }
}

impl Drop for ModelLease {
    fn drop(&mut self) {
        let wish = KeepWish {
            function: self.function.clone(),
            until: *self.kept.get_mut(),
        };
        self.host.release(self.session, wish);
    }
}

/// What one sandbox may infer with.
pub(crate) struct NnContext {
    host: Arc<dyn InferenceHost>,
    declared: BTreeMap<String, Arc<ModelLease>>,
    function: FunctionName,
    isolation: InferenceIsolation,
    max_guest_model: u64,
    /// Bytes of tensors that the host holds for the guest, and the most it may: as much as its own memory. Without it a
    /// guest could have the host keep any number of copies of one buffer.
    held: Arc<AtomicU64>,
    max_held: u64,
    /// Set when a tensor was refused for that: a trap after it is the limit's doing.
    pub(crate) refused: bool,
    deadline: Instant,
    /// The invocation's; inference is part of it.
    trace: Trace,
    /// Wall time inside `compute` since [`NnContext::begin`].
    pub(crate) spent: Duration,
    /// `compute` calls since [`NnContext::begin`].
    pub(crate) computes: u32,
    /// Whether a compute has made the guest wait since the last epoch tick: that tick is not its CPU time.
    pub(crate) waited: bool,
}

impl NnContext {
    pub(crate) fn new(
        host: Arc<dyn InferenceHost>,
        declared: BTreeMap<String, Arc<ModelLease>>,
        version: &Version,
    ) -> Self {
        Self {
            host,
            declared,
            function: version.function.clone(),
            isolation: version.config.inference_isolation,
            max_guest_model: version.config.guest_model.bytes(),
            held: Arc::new(AtomicU64::new(0)),
            max_held: version.config.memory.bytes(),
            refused: false,
            deadline: Instant::now(),
            trace: Trace::none(),
            spent: Duration::ZERO,
            computes: 0,
            waited: false,
        }
    }

    /// A context for another sandbox of the same instance: it shares the models.
    pub(crate) fn fork(&self) -> Self {
        Self {
            host: self.host.clone(),
            declared: self.declared.clone(),
            function: self.function.clone(),
            isolation: self.isolation,
            max_guest_model: self.max_guest_model,
            held: Arc::new(AtomicU64::new(0)),
            max_held: self.max_held,
            refused: false,
            deadline: self.deadline,
            trace: Trace::none(),
            spent: Duration::ZERO,
            computes: 0,
            waited: false,
        }
    }

    /// From now on inference belongs to this invocation.
    pub(crate) fn begin(&mut self, deadline: Instant, trace: Trace) {
        self.deadline = deadline;
        self.trace = trace;
        self.spent = Duration::ZERO;
        self.computes = 0;
    }

    /// Keeps a tensor for the guest, if it fits what the guest may have kept.
    pub(crate) fn hold(&mut self, tensor: Tensor) -> Result<HeldTensor, InferenceError> {
        // A shape costs the host memory as well, and may be all that there is.
        let bytes = (tensor.data.len() + size_of_val(tensor.dimensions.as_slice())) as u64;
        let charge = Charge {
            held: self.held.clone(),
            bytes,
        };
        if self
            .held
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes)
            > self.max_held
        {
            self.refused = true;
            return Err(InferenceError::new(
                InferenceErrorKind::TooLarge,
                format!(
                    "the guest's tensors on the host would exceed its memory limit of {} bytes; drop some, or raise memory",
                    self.max_held
                ),
            ));
        }
        Ok(HeldTensor { tensor, charge })
    }

    /// wasi-nn `load-by-name`: a model that the function declared, nobody else's.
    pub(crate) fn load_by_name(&self, name: &str) -> Result<Arc<ModelLease>, InferenceError> {
        self.declared.get(name).cloned().ok_or_else(|| {
            let known: Vec<_> = self.declared.keys().map(String::as_str).collect();
            InferenceError::new(
                InferenceErrorKind::NotFound,
                format!(
                    "no model '{}' is declared; this function has: {}",
                    name.chars().take(128).collect::<String>().escape_debug(),
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                ),
            )
        })
    }

    /// wasi-nn `load`: a model from the guest's own bytes.
    pub(crate) async fn load(
        &self,
        builders: Vec<Vec<u8>>,
    ) -> Result<Arc<ModelLease>, InferenceError> {
        let Ok([model]) = <[Vec<u8>; 1]>::try_from(builders) else {
            return Err(InferenceError::invalid(
                "an ONNX graph is loaded from exactly one buffer",
            ));
        };
        let size = model.len() as u64;
        if size > self.max_guest_model {
            return Err(InferenceError::new(
                InferenceErrorKind::TooLarge,
                format!(
                    "a model of {size} bytes is over guest_model ({} bytes); declare it under [models] instead",
                    self.max_guest_model
                ),
            ));
        }
        let request = LoadModel {
            source: ModelSource::Bytes(Bytes::from(model)),
            function: self.function.clone(),
            isolation: self.isolation,
            deadline: self.deadline,
        };
        let step = self.trace.step("load");
        step.set("fnctl.model.bytes", || {
            i64::try_from(size).unwrap_or(i64::MAX)
        });
        let loaded = ModelLease::load(&self.host, request).await;
        note_failure(&step, loaded.as_ref().err());
        loaded.map(Arc::new)
    }

    /// wasi-nn `compute`.
    pub(crate) async fn compute(
        &mut self,
        model: &ModelLease,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Computed, InferenceError> {
        let step = self.trace.step("compute");
        step.set_words("fnctl.inputs", inputs.iter().take(16).map(describe));
        let since = Instant::now();
        let request = Compute {
            session: model.session,
            function: self.function.clone(),
            inputs,
            deadline: self.deadline,
        };
        // The guest waits, but not for something outside: a processor works for it.
        let computing = fnctl_core::activity::computing();
        let computed = self.host.compute(request).await;
        drop(computing);
        self.spent += since.elapsed();
        self.computes = self.computes.saturating_add(1);
        self.waited = true;
        note_failure(&step, computed.as_ref().err());
        computed
    }
}

fn note_failure(step: &Step, error: Option<&InferenceError>) {
    if let Some(error) = error {
        step.fail(|| error.to_string());
    }
}

/// An input as a trace shows it: name, type and shape, no values.
fn describe((name, tensor): &(String, Tensor)) -> String {
    let name: String = name.chars().take(64).collect();
    // Nobody has checked the tensor yet.
    let shape = tensor
        .dimensions
        .get(..Tensor::MAX_RANK)
        .unwrap_or(&tensor.dimensions);
    format!("{name} {} {shape:?}", tensor.ty.as_str())
}

/// Which encodings and targets this host serves. A GPU that is asked for and absent is refused, not replaced.
pub(crate) fn check_target(is_onnx: bool, is_cpu: bool) -> Result<(), InferenceError> {
    if !is_onnx {
        return Err(InferenceError::new(
            InferenceErrorKind::InvalidEncoding,
            "only ONNX graphs can be loaded here",
        ));
    }
    if !is_cpu {
        return Err(InferenceError::new(
            InferenceErrorKind::Unsupported,
            "this platform computes on the CPU; ask for execution-target cpu",
        ));
    }
    Ok(())
}
