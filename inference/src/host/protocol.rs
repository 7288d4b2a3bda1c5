//! What a platform and an inference host say to each other: frames on the control socket, messages in the slots of the
//! shared memory. Encoded with postcard; both are bounded before they are decoded.

use super::shared::Layout;
use crate::allocator::Shortage;
use fnctl_core::inference::{InferenceError, InferenceErrorKind, ModelInfo, TensorType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Both sides are the same program; a host that says another number was replaced on disk under a running platform.
pub(crate) const VERSION: u32 = 4;
/// Most bytes of one frame.
pub(crate) const MAX_FRAME: usize = 64 << 10;

/// What a host is told at its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) version: u32,
    pub(crate) layout: Layout,
    /// The platform's process id.
    pub(crate) parent: u32,
    /// Path of the ONNX Runtime library, found by the platform.
    pub(crate) library: String,
    pub(crate) memory: u64,
    pub(crate) constant_folding: bool,
    pub(crate) intra_threads: usize,
    /// Threads of the bulk lane.
    pub(crate) compute_threads: usize,
    pub(crate) express_threads: usize,
    pub(crate) parallel_loads: usize,
}

/// From the platform.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The first frame; the shared memory and the signal for answers come with it.
    Setup(Setup),
    /// Load a model; its bytes come as a descriptor.
    Load { session: u64, length: u64 },
    /// Forget a session once its runs have ended, and say so.
    Unload { session: u64 },
    /// A run nobody waits for any more, or whose outputs nobody fetches.
    Cancel { slot: u32, run: u32 },
    /// Answer with the same number.
    Ping(u64),
}

/// From the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The library is loaded and the host is confined.
    Ready {
        version: u32,
        confinement: String,
        /// Measures that are not fully in force, with the reason.
        unconfined: Vec<String>,
    },
    /// It is not, and the host is about to exit.
    Failed(InferenceError),
    /// The end of a load.
    Loaded {
        session: u64,
        result: Result<ModelInfo, InferenceError>,
        /// Bytes that ONNX Runtime took for it.
        bytes: u64,
        /// What was missing, if it was memory.
        shortage: Option<Shortage>,
    },
    /// A session is forgotten, and its memory free unless a run is still in it.
    Unloaded { session: u64 },
    /// The answer to a ping.
    Pong(u64),
}

/// A range of the shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Span {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// An input in the shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct InputAt {
    pub(crate) index: u32,
    pub(crate) ty: TensorType,
    pub(crate) dimensions: Vec<u32>,
    pub(crate) at: Span,
}

/// What a submitted slot asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Submission {
    /// Compute, and put the outputs into the room.
    Compute {
        run: u32,
        session: u64,
        inputs: Vec<InputAt>,
        room: Span,
    },
    /// Put the outputs of this slot's last compute, which had too little room, into this one.
    Deliver { run: u32, room: Span },
}

/// An output in the shared memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OutputAt {
    pub(crate) ty: TensorType,
    pub(crate) dimensions: Vec<u32>,
    pub(crate) at: Span,
}

/// What an answered slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// In the graph's order.
    Outputs(Vec<OutputAt>),
    /// The outputs need a room of this many bytes.
    NeedsRoom(u64),
    /// It came to nothing; what was missing, if it was memory.
    Failed(InferenceErrorKind, String, Option<Shortage>),
}

/// A message that is too long or cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Encodes into `buffer`, if it fits `limit`.
pub(crate) fn encode<T: Serialize>(
    message: &T,
    limit: usize,
    buffer: &mut Vec<u8>,
) -> Result<(), Malformed> {
    buffer.resize(limit, 0);
    let written = postcard::to_slice(message, buffer)
        .map_err(|_| Malformed)?
        .len();
    buffer.truncate(written);
    Ok(())
}

/// Decodes all of `bytes`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_goes_through_and_noise_does_not() {
        let submission = Submission::Compute {
            run: 7,
            session: u64::MAX,
            inputs: vec![InputAt {
                index: 0,
                ty: TensorType::I64,
                dimensions: vec![1, 3, 224, 224],
                at: Span {
                    offset: 1 << 40,
                    length: 64,
                },
            }],
            room: Span {
                offset: 0,
                length: 1,
            },
        };
        let mut bytes = Vec::new();
        encode(&submission, 4096, &mut bytes).unwrap();
        assert_eq!(decode::<Submission>(&bytes), Ok(submission.clone()));
        assert_eq!(encode(&submission, 8, &mut Vec::new()), Err(Malformed));
        bytes.push(0);
        assert_eq!(
            decode::<Submission>(&bytes),
            Err(Malformed),
            "a byte too many"
        );
        // A vector that claims 2^63 elements must cost no memory.
        let absurd = [
            0, 7, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
        ];
        assert_eq!(decode::<Submission>(&absurd), Err(Malformed));
        let mut state = 1_u32;
        for length in 0..300 {
            let noise: Vec<u8> = (0..length)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    state.to_be_bytes()[0]
                })
                .collect();
            let _ = decode::<Answer>(&noise);
            let _ = decode::<Report>(&noise);
        }
    }
}
