//! One inference in the host: from the message in a slot to the answer in the same slot.

use super::bound::{self, Outputs};
use super::child::{Host, Hosted};
use super::protocol::{self, Answer, InputAt, OutputAt, Span, Submission};
use super::shared::{Figure, SlotWord};
use crate::allocator;
use crate::inputs;
use fnctl_core::inference::{Computed, InferenceError, InferenceErrorKind, Tensor};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;

/// Distance of tensors in the shared memory: MLAS's widest vectors want it.
pub(crate) const ALIGNMENT: usize = 64;

fn bad(text: &'static str) -> InferenceError {
    InferenceError::new(InferenceErrorKind::Runtime, text)
}

fn range(span: Span) -> Result<(usize, usize), InferenceError> {
    let offset = usize::try_from(span.offset).map_err(|_| bad("a span is out of bounds"))?;
    let length = usize::try_from(span.length).map_err(|_| bad("a span is out of bounds"))?;
    Ok((offset, length))
}

impl Host {
    /// Does what the slot's message asks for.
    pub(super) fn answer(&self, slot: u32, message: &mut Vec<u8>) -> Answer {
        let read = self
            .shared
            .read_message(slot, message)
            .map_err(|_| bad("a submission is out of bounds"))
            .and_then(|()| {
                protocol::decode(message).map_err(|_| bad("a submission cannot be read"))
            });
        let done = read.and_then(|submission| match submission {
            Submission::Compute {
                run,
                session,
                inputs,
                room,
            } => {
                let outputs = self.run((slot, run), session, inputs, room)?;
                match outputs {
                    Outputs::Placed(outputs) => Ok(Answer::Outputs(outputs)),
                    Outputs::Loose(outputs) => self.deliver((slot, run), outputs, room),
                }
            }
            Submission::Deliver { run, room } => {
                let held = self
                    .slots
                    .get(slot as usize)
                    .and_then(|s| s.lock().held.take());
                let (_, outputs) = held.ok_or_else(|| bad("no outputs are held"))?;
                self.deliver((slot, run), outputs, room)
            }
        });
        done.unwrap_or_else(|error| {
            let (kind, lacking) = (error.kind, allocator::shortage_of(&error, 1));
            let mut message = error.message;
            message.truncate(message.floor_char_boundary(2048));
            Answer::Failed(kind, message, lacking)
        })
    }

    fn run(
        &self,
        (slot, run): (u32, u32),
        session: u64,
        inputs: Vec<InputAt>,
        room: Span,
    ) -> Result<Outputs, InferenceError> {
        let Hosted { session, learned } = &*self
            .sessions
            .read()
            .get(&session)
            .cloned()
            .ok_or_else(|| bad("the session is not loaded in this host"))?;
        let mut tensors = Vec::with_capacity(inputs.len());
        for input in inputs {
            let (offset, length) = range(input.at)?;
            let data = self
                .shared
                .borrow(offset, length)
                .map_err(|_| bad("an input is out of bounds"))?;
            let tensor = Tensor {
                dimensions: input.dimensions,
                ty: input.ty,
                data,
            };
            tensors.push((input.index as usize, tensor));
        }
        let bound = session.bind(inputs::check(&session.info, tensors)?)?;
        let state = self
            .slots
            .get(slot as usize)
            .ok_or_else(|| bad("no such slot"))?;
        {
            let mut state = state.lock();
            state.held = None;
            state.running = Some((run, bound.stopper()));
        }
        // After the stopper is in place: a cancellation that came before it is seen here, a later one finds it.
        let cancelled = self.shared.slot_word(slot, SlotWord::Cancelled);
        if cancelled.load(Ordering::SeqCst) == run {
            state.lock().running = None;
        }
        let room = range(room)?;
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            bound::execute(learned, &bound, &self.shared, room)
        }));
        if let Some((_, stopper)) = state.lock().running.take() {
            stopper.disarm();
        }
        self.shared
            .figure(Figure::Computes)
            .fetch_add(1, Ordering::Relaxed);
        outcome.unwrap_or_else(|_| Err(bad("the inference panicked")))
    }

    /// Copies the outputs into the room, or keeps them until there is enough of it.
    fn deliver(
        &self,
        (slot, run): (u32, u32),
        outputs: Computed,
        room: Span,
    ) -> Result<Answer, InferenceError> {
        let (mut offset, length) = range(room)?;
        let needed = outputs
            .iter()
            .map(|(_, tensor)| tensor.data.len().next_multiple_of(ALIGNMENT))
            .sum::<usize>();
        if needed > length {
            if let Some(state) = self.slots.get(slot as usize) {
                state.lock().held = Some((run, outputs));
            }
            return Ok(Answer::NeedsRoom(needed as u64));
        }
        let mut placed = Vec::with_capacity(outputs.len());
        for (_, tensor) in outputs {
            self.shared
                .write(offset, &tensor.data)
                .map_err(|_| bad("the room is out of bounds"))?;
            placed.push(OutputAt {
                ty: tensor.ty,
                dimensions: tensor.dimensions,
                at: Span {
                    offset: offset as u64,
                    length: tensor.data.len() as u64,
                },
            });
            offset += tensor.data.len().next_multiple_of(ALIGNMENT);
        }
        Ok(Answer::Outputs(placed))
    }
}
