//! One loaded model. Any number of runs go on side by side: ONNX Runtime's C API allows `Run` on one session from many
//! threads at once.

use crate::allocator::{self, Account};
use crate::inputs::{self, Resolved};
use crate::sessions::Loaded;
use crate::tensors::{self, Input, Value};
use fnctl_core::inference::{
    Computed, InferenceError, InferenceErrorKind, ModelInfo, Port, Tensor,
};
use fnctl_core::ladder::RungCost;
use ort::AsPointer;
use ort::session::{NoSelectedOutputs, RunOptions, Session};
use ort::sys::OrtValue;
use std::ffi::CString;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) struct OnnxSession {
    session: Session,
    pub(crate) info: Arc<ModelInfo>,
    input_names: Vec<CString>,
    output_names: Vec<CString>,
    account: Arc<Account>,
    /// How long loading it took, as whoever loads it sees it.
    pub(crate) took: Duration,
    running: AtomicUsize,
    /// Most runs that were inside ONNX Runtime at one time.
    peak: AtomicUsize,
}

impl Loaded for OnnxSession {
    fn info(&self) -> Arc<ModelInfo> {
        self.info.clone()
    }

    fn cost(&self) -> RungCost {
        RungCost {
            took: self.took,
            bytes: self.resident_bytes(),
        }
    }
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
            took: Duration::ZERO,
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
        self.bind(inputs::resolve(&self.info, inputs)?)
    }

    /// Binds inputs that were checked against the graph.
    pub(crate) fn bind(self: &Arc<Self>, inputs: Vec<Resolved>) -> Result<Run, InferenceError> {
        let mut bound = Vec::with_capacity(inputs.len());
        let mut shapes = Vec::with_capacity(inputs.len());
        for input in inputs {
            bound.push((input.index, Input::new(input.tensor, &input.shape)?));
            shapes.push((input.index, input.shape));
        }
        let options = RunOptions::new()
            .map_err(|error| InferenceError::new(InferenceErrorKind::Runtime, error.to_string()))?;
        Ok(Run {
            session: self.clone(),
            inputs: bound,
            shapes,
            stop: Arc::new(Stop {
                options,
                done: AtomicBool::new(false),
                stopped: AtomicBool::new(false),
            }),
        })
    }
}

struct Stop {
    options: RunOptions<NoSelectedOutputs>,
    done: AtomicBool,
    stopped: AtomicBool,
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
            self.0.stopped.store(true, Ordering::Relaxed);
            let _ = self.0.options.terminate();
        }
    }
}

/// A run with its inputs bound, ready for a thread that may block.
pub(crate) struct Run {
    session: Arc<OnnxSession>,
    inputs: Vec<(usize, Input)>,
    shapes: Vec<(usize, Vec<i64>)>,
    stop: Arc<Stop>,
}

impl Run {
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Whether it was told to end early.
    #[cfg(target_os = "linux")]
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.stopped.load(Ordering::Relaxed)
    }

    /// The inputs by their indexes in the graph, and the shapes that they have.
    #[cfg(target_os = "linux")]
    pub(crate) fn shapes(&self) -> &[(usize, Vec<i64>)] {
        &self.shapes
    }

    /// Computes. Blocks the thread for as long as the model takes.
    pub(crate) fn execute(&self) -> Result<Computed, InferenceError> {
        let outputs = &self.session.info.outputs;
        let mut values = vec![ptr::null_mut(); outputs.len()];
        let ran = self.run(&mut values);
        // Owned before the error is looked at, so that nothing leaks.
        let owned: Vec<_> = values.into_iter().map(Value::own).collect();
        ran?;
        owned
            .into_iter()
            .zip(outputs)
            .map(|(value, port)| Ok((port.name.clone(), value?.into_tensor(&self.inputs)?)))
            .collect()
    }

    /// Computes, and has the outputs written into these values, one for each. ONNX Runtime refuses those that have
    /// another shape than what comes out.
    #[cfg(target_os = "linux")]
    pub(crate) fn execute_onto(&self, outputs: &[Value]) -> Result<(), InferenceError> {
        if outputs.len() != self.session.info.outputs.len() {
            return Err(InferenceError::invalid("another number of outputs"));
        }
        // They stay the caller's: what is not null is written to, and neither replaced nor released.
        let mut values: Vec<_> = outputs.iter().map(Value::as_ptr).collect();
        self.run(&mut values)
    }

    /// Runs the session onto `outputs`: as many as the graph has, each null or a value that is to be written to.
    fn run(&self, outputs: &mut [*mut OrtValue]) -> Result<(), InferenceError> {
        let session = &self.session;
        let running = session.running.fetch_add(1, Ordering::Relaxed) + 1;
        session.peak.fetch_max(running, Ordering::Relaxed);
        let ran = allocator::charged(&session.account, || self.run_native(outputs));
        session.running.fetch_sub(1, Ordering::Relaxed);
        ran.map_err(|error| {
            // This run's own: others of the session may be refused memory at the same time.
            if allocator::shortage().is_some() {
                return InferenceError::new(
                    InferenceErrorKind::TooLarge,
                    "the inference needs more memory than inference.memory leaves",
                );
            }
            error
        })
    }

    fn run_native(&self, outputs: &mut [*mut OrtValue]) -> Result<(), InferenceError> {
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
        // SAFETY: every array has the length that is passed with it (`run` says so of the outputs); names and values
        // outlive the call. Outputs that are null ONNX Runtime allocates and gives to us; the others are tensors over
        // memory that is theirs to write to (`Value::over`). `Run` may be called on one session from several threads at
        // once (onnxruntime_c_api.h, and the threading section of ONNX Runtime's documentation); the CPU provider, the
        // only one here, keeps no state between runs.
        tensors::status(unsafe {
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
        })
    }
}
