//! Outputs that ONNX Runtime writes where the platform reads them: in the room of their compute, in the shared memory.
//!
//! A place has to have the right size before the run, and what a model declares of its outputs is not to be relied on: often it
//! is open, and it may be wrong. So the first run for inputs of some shapes is free, and what came out of it is remembered
//! for the next ones. ONNX Runtime checks the shape of every place it is given when the operator asks for it (in its
//! core/framework/op_kernel.cc, `OutputMLValue`), and refuses the run if it is another; then it is made
//! again, freely, and the model is given no places any more: its outputs depend on more than the inputs' shapes. So answers
//! are the same, bound or not.

use super::child_compute::ALIGNMENT;
use super::protocol::{OutputAt, Span};
use super::shared::{OutOfBounds, Shared};
use crate::session::Run;
use crate::tensors::Value;
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind, ModelInfo, TensorType};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes of outputs from which a place of their own is worth while.
pub(crate) const WORTH: usize = 64 << 10;
/// Shapes of inputs that are remembered for a session.
const MOST: usize = 4;
/// What a place is filled with before anything was ever written to it by this model.
const BLANK: u8 = 0xa5;

/// How ONNX Runtime says that a place has another shape than what comes out: in its core/framework/op_kernel.cc, and in
/// execution_frame.cc of those before. One that says it otherwise is believed when the run succeeds without a place.
const REFUSED: [&str; 2] = ["computed output shape", "shape verification failed"];
/// Bytes that are looked at in one go.
const CHUNK: usize = 16 << 10;

/// One output, as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Output {
    ty: TensorType,
    dimensions: Vec<u32>,
    bytes: usize,
}

/// What came out of inputs of these shapes.
#[derive(Debug)]
struct Known {
    inputs: Vec<(usize, Vec<i64>)>,
    outputs: Vec<Output>,
    /// Whether all of them were once written to their places.
    proven: AtomicBool,
}

/// What is known of one session's outputs.
#[derive(Debug, Default)]
pub(crate) struct Learned {
    /// Whether there is anything to recall; for most models there never is.
    any: AtomicBool,
    /// Not worth trying, or tried and refused.
    never: AtomicBool,
    /// The last one that was used comes first.
    known: Mutex<Vec<Arc<Known>>>,
}

impl Learned {
    pub(crate) fn new(info: &ModelInfo) -> Self {
        let learned = Self::default();
        // ONNX Runtime hands such an input's own memory back, whatever place the output was given.
        let is_input = |name: &str| info.inputs.iter().any(|input| input.name == name);
        if info.outputs.iter().any(|output| is_input(&output.name)) {
            learned.give_up();
        }
        learned
    }

    fn give_up(&self) {
        self.never.store(true, Ordering::Relaxed);
        self.any.store(false, Ordering::Relaxed);
        self.known.lock().clear();
    }

    fn recall(&self, inputs: &[(usize, Vec<i64>)]) -> Option<Arc<Known>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut known = self.known.lock();
        let index = known.iter().position(|one| one.inputs == inputs)?;
        known.get_mut(..=index)?.rotate_right(1);
        known.first().cloned()
    }

    fn learn(&self, inputs: &[(usize, Vec<i64>)], outputs: &Computed) {
        let length: usize = outputs.iter().map(|(_, tensor)| tensor.data.len()).sum();
        if length < WORTH {
            return;
        }
        let of = |(_, tensor): &(String, fnctl_core::inference::Tensor)| Output {
            ty: tensor.ty,
            dimensions: tensor.dimensions.clone(),
            bytes: tensor.data.len(),
        };
        self.remember(Arc::new(Known {
            inputs: inputs.to_vec(),
            outputs: outputs.iter().map(of).collect(),
            proven: AtomicBool::new(false),
        }));
    }

    fn remember(&self, one: Arc<Known>) {
        let mut known = self.known.lock();
        // Looked at under the lock: who gives up clears what is known afterwards.
        if self.never.load(Ordering::Relaxed) {
            return;
        }
        // Another thread may have learned the same meanwhile.
        if known.iter().all(|other| other.inputs != one.inputs) {
            known.truncate(MOST - 1);
            known.insert(0, one);
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// Not to be tried again, until a run without places says the same once more.
    fn doubt(&self, one: &Arc<Known>) {
        self.known.lock().retain(|known| !Arc::ptr_eq(known, one));
    }
}

/// Where the outputs of a run are.
#[derive(Debug)]
pub(crate) enum Outputs {
    /// In the room, in the graph's order.
    Placed(Vec<OutputAt>),
    /// In memory of ONNX Runtime's own.
    Loose(Computed),
}

/// Computes, into the room if it is known what will come out.
pub(crate) fn execute(
    learned: &Learned,
    run: &Run,
    shared: &Shared,
    room: (usize, usize),
) -> Result<Outputs, InferenceError> {
    let known = learned.recall(run.shapes());
    let place = known.and_then(|known| Place::new(known, shared, room));
    let Some(place) = place else {
        let outputs = run.execute()?;
        learned.learn(run.shapes(), &outputs);
        return Ok(Outputs::Loose(outputs));
    };
    match place.fill(run) {
        Ok(true) => return Ok(Outputs::Placed(place.outputs())),
        // It would need more memory without a place.
        Err(error) if error.kind == InferenceErrorKind::TooLarge => return Err(error),
        // Before it is made again: that may be ended on its way, and the next one shall not begin with the same detour.
        Ok(false) => learned.give_up(),
        Err(error) if is_refused(&error) => learned.give_up(),
        // Ended from outside: that says nothing.
        Err(error) if run.is_stopped() => return Err(error),
        Err(_) => learned.doubt(&place.known),
    }
    let outputs = run.execute();
    match &outputs {
        Ok(_) => learned.give_up(),
        // It does not know what would have come of it.
        Err(_) if run.is_stopped() => {}
        // What fails without a place as well, was not the place's fault.
        Err(_) => learned.remember(place.known),
    }
    Ok(Outputs::Loose(outputs?))
}

fn is_refused(error: &InferenceError) -> bool {
    REFUSED.iter().any(|words| error.message.contains(words))
}

/// Memory for the outputs of one run.
struct Place<'a> {
    known: Arc<Known>,
    shared: &'a Shared,
    /// Where each output begins.
    offsets: Vec<usize>,
}

impl<'a> Place<'a> {
    /// None if there is no room for it.
    fn new(known: Arc<Known>, shared: &'a Shared, (room, length): (usize, usize)) -> Option<Self> {
        let end = room.checked_add(length)?;
        let mut next = room;
        let mut offsets = Vec::with_capacity(known.outputs.len());
        for output in &known.outputs {
            offsets.push(next);
            next = next.checked_add(output.bytes.checked_next_multiple_of(ALIGNMENT)?)?;
        }
        // Tensors of no bytes have no place; and nothing may rely on what the platform says of alignment.
        let fits = next <= end && room.is_multiple_of(ALIGNMENT);
        let solid = known.outputs.iter().all(|output| output.bytes > 0);
        (fits && solid).then_some(Self {
            known,
            shared,
            offsets,
        })
    }

    fn each(&self) -> impl Iterator<Item = (&Output, usize)> {
        self.known.outputs.iter().zip(self.offsets.iter().copied())
    }

    /// Runs into it. Says whether all of it was written to.
    fn fill(&self, run: &Run) -> Result<bool, InferenceError> {
        let outside = |_| InferenceError::invalid("the room is out of bounds");
        let proven = self.known.proven.load(Ordering::Relaxed);
        let mut values = Vec::with_capacity(self.offsets.len());
        for (output, offset) in self.each() {
            let address = self.shared.address(offset, output.bytes).map_err(outside)?;
            if !proven {
                // SAFETY: the range lies in the mapping. As below, nobody else writes to it.
                unsafe { address.write_bytes(BLANK, output.bytes) };
            }
            let shape: Vec<i64> = output.dimensions.iter().copied().map(i64::from).collect();
            // SAFETY: the range lies in the mapping, which lives as long as `self`, and is aligned as every offset is. The
            // length was that of a real tensor of this shape and type. The room belongs to this run: the platform gives
            // it to nobody else, and does not look at it, before it has the answer, also if the run is cancelled
            // meanwhile; and ranges of one room do not overlap. Whatever the platform did all the same, bytes of a
            // tensor have no invalid value.
            let value = unsafe { Value::over(address.as_ptr(), output.bytes, &shape, output.ty)? };
            values.push(value);
        }
        run.execute_onto(&values)?;
        // Released before anybody looks at what they were over.
        drop(values);
        if !proven {
            for (output, offset) in self.each() {
                if self.is_blank(offset, output.bytes).map_err(outside)? {
                    return Ok(false);
                }
            }
            self.known.proven.store(true, Ordering::Relaxed);
        }
        Ok(true)
    }

    /// Whether nothing was written there: somebody else's old bytes could be in its stead the next time.
    fn is_blank(&self, offset: usize, length: usize) -> Result<bool, OutOfBounds> {
        for start in (0..length).step_by(CHUNK) {
            let bytes = self
                .shared
                .read_bytes(offset + start, CHUNK.min(length - start))?;
            if bytes.iter().any(|byte| *byte != BLANK) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn outputs(&self) -> Vec<OutputAt> {
        let at = |(output, offset): (&Output, usize)| OutputAt {
            ty: output.ty,
            dimensions: output.dimensions.clone(),
            at: Span {
                offset: offset as u64,
                length: output.bytes as u64,
            },
        };
        self.each().map(at).collect()
    }
}
