//! One loaded model. Any number of runs go on side by side: ONNX Runtime's C API allows `Run` on one session from many
//! threads at once.

use crate::allocator::{self, Account};
use crate::tensors::{self, Input, Value};
use fnctl_core::inference::{
    Computed, InferenceError, InferenceErrorKind, ModelInfo, Port, Tensor,
};
use ort::AsPointer;
use ort::session::{NoSelectedOutputs, RunOptions, Session};
use std::ffi::CString;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

pub(crate) struct OnnxSession {
    session: Session,
    pub(crate) info: Arc<ModelInfo>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    account: Arc<Account>,
    running: AtomicUsize,
    /// Most runs that were inside ONNX Runtime at one time.
    peak: AtomicUsize,
}

impl OnnxSession {
    pub(crate) fn new(session: Session, account: Arc<Account>) -> Result<Self, InferenceError> {
        let mut info = ModelInfo::default();
        for input in session.inputs() {
            let port = tensors::port(input.name(), input.dtype()).ok_or_else(|| {
                InferenceError::new(
                    InferenceErrorKind::Unsupported,
                    format!(
                        "input '{}' is of a type that wasi-nn has no word for: {}",
                        input.name(),
                        input.dtype()
                    ),
                )
            })?;
            info.inputs.push(port);
        }
        for output in session.outputs() {
            match tensors::port(output.name(), output.dtype()) {
                Some(port) => info.outputs.push(port),
                None => info.unsupported_outputs.push(output.name().to_owned()),
            }
        }
        if info.outputs.is_empty() {
            return Err(InferenceError::new(
                InferenceErrorKind::Unsupported,
                format!(
                    "no output is of a type that wasi-nn has a word for: {}",
                    info.unsupported_outputs.join(", ")
                ),
            ));
        }
        let names = |ports: &[Port]| -> Result<Vec<CString>, InferenceError> {
            ports
                .iter()
                .map(|port| CString::new(port.name.as_str()))
                .collect::<Result<_, _>>()
                .map_err(|_| {
                    InferenceError::new(
                        InferenceErrorKind::InvalidEncoding,
                        "a name in the graph contains NUL",
                    )
                })
        };
        Ok(Self {
            input_names: names(&info.inputs)?,
            output_names: names(&info.outputs)?,
            info: Arc::new(info),
            session,
            account,
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
        })
    }

    /// Bytes that ONNX Runtime holds for this session.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.account.live()
    }

    /// Most runs at one time so far.
    #[cfg(test)]
    pub(crate) fn peak_runs(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Runs that are inside ONNX Runtime now.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// Checks the inputs against the graph and binds them. Nothing native has run yet.
    pub(crate) fn prepare(
        self: &Arc<Self>,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Run, InferenceError> {
        let mut bound = Vec::with_capacity(inputs.len());
        let mut seen = vec![false; self.info.inputs.len()];
        for (name, tensor) in inputs {
            let index = self.input_index(&name)?;
            if let Some(seen) = seen.get_mut(index)
                && std::mem::replace(seen, true)
            {
                return Err(InferenceError::invalid(format!(
                    "input '{name}' is given twice"
                )));
            }
            let port = self
                .info
                .inputs
                .get(index)
                .ok_or_else(|| InferenceError::invalid("no such input"))?;
            tensor.check()?;
            let shape = shape_for(port, &tensor)?;
            bound.push((index, Input::new(tensor, &shape)?));
        }
        if let Some(missing) = seen.iter().position(|seen| !seen) {
            let name = self
                .info
                .inputs
                .get(missing)
                .map_or("", |port| port.name.as_str());
            return Err(InferenceError::invalid(format!(
                "input '{name}' is missing"
            )));
        }
        let options = RunOptions::new()
            .map_err(|error| InferenceError::new(InferenceErrorKind::Runtime, error.to_string()))?;
        Ok(Run {
            session: self.clone(),
            inputs: bound,
            stop: Arc::new(Stop {
                options,
                done: AtomicBool::new(false),
            }),
        })
    }

    /// An input by its name, or by its index in digits, as guests of the older ABI name them.
    fn input_index(&self, name: &str) -> Result<usize, InferenceError> {
        let by_name = self.info.inputs.iter().position(|port| port.name == name);
        let by_index = || {
            name.parse::<usize>()
                .ok()
                .filter(|index| *index < self.info.inputs.len())
        };
        by_name.or_else(by_index).ok_or_else(|| {
            let known: Vec<_> = self
                .info
                .inputs
                .iter()
                .map(|port| port.name.as_str())
                .collect();
            let name: String = name.chars().take(128).collect();
            InferenceError::invalid(format!(
                "the model has no input '{}'; it has: {}",
                name.escape_debug(),
                known.join(", ")
            ))
        })
    }
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

struct Stop {
    options: RunOptions<NoSelectedOutputs>,
    done: AtomicBool,
}

/// Ends a run early when dropped, unless disarmed.
pub(crate) struct Stopper(Arc<Stop>);

impl Stopper {
    pub(crate) fn disarm(self) {
        self.0.done.store(true, Ordering::Relaxed);
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        // ONNX Runtime looks at the flag between two operators.
        if !self.0.done.load(Ordering::Relaxed) {
            let _ = self.0.options.terminate();
        }
    }
}

/// A run with its inputs bound, ready for a thread that may block.
pub(crate) struct Run {
    session: Arc<OnnxSession>,
    inputs: Vec<(usize, Input)>,
    stop: Arc<Stop>,
}

impl Run {
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Computes. Blocks the thread for as long as the model takes.
    pub(crate) fn execute(self) -> Result<Computed, InferenceError> {
        let session = &self.session;
        let running = session.running.fetch_add(1, Ordering::Relaxed) + 1;
        session.peak.fetch_max(running, Ordering::Relaxed);
        let outputs = allocator::charged(&session.account, || self.run());
        session.running.fetch_sub(1, Ordering::Relaxed);
        let outputs = outputs.map_err(|error| {
            if session.account.take_refused() {
                return InferenceError::new(
                    InferenceErrorKind::TooLarge,
                    "the inference needs more memory than inference.memory leaves",
                );
            }
            error
        })?;
        outputs
            .into_iter()
            .zip(&session.info.outputs)
            .map(|(value, port)| Ok((port.name.clone(), value.into_tensor(&self.inputs)?)))
            .collect()
    }

    fn run(&self) -> Result<Vec<Value>, InferenceError> {
        let session = &self.session;
        let mut names = Vec::with_capacity(self.inputs.len());
        let mut values = Vec::with_capacity(self.inputs.len());
        for (index, input) in &self.inputs {
            let name = session
                .input_names
                .get(*index)
                .ok_or_else(|| InferenceError::invalid("no such input"))?;
            names.push(name.as_ptr());
            values.push(input.as_ptr());
        }
        let output_names: Vec<_> = session
            .output_names
            .iter()
            .map(|name| name.as_ptr())
            .collect();
        let mut outputs = vec![ptr::null_mut(); output_names.len()];
        // SAFETY: every array has the length that is passed with it; names and values outlive the call; the outputs are
        // null, so ONNX Runtime allocates them and gives them to us. `Run` may be called on one session from several
        // threads at once (onnxruntime_c_api.h, and the threading section of ONNX Runtime's documentation); the CPU
        // provider, the only one here, keeps no state between runs.
        let ran = tensors::status(unsafe {
            (ort::api().Run)(
                session.session.ptr().cast_mut(),
                self.stop.options.ptr(),
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        });
        // Owned before the error is looked at, so that nothing leaks.
        let owned: Vec<_> = outputs.into_iter().map(Value::own).collect();
        ran?;
        owned.into_iter().collect()
    }
}
