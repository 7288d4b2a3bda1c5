//! The messages of the `InferenceHost` port: plain data in, plain data out, so that the host behind it can be in this
//! process or in another one. The words are wasi-nn's.

use crate::config::InferenceIsolation;
use crate::error::ErrorKind;
use crate::ids::{Digest, FunctionName};
use crate::ladder::RungCost;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tokio::time::Instant;

/// The element types of wasi-nn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TensorType {
    /// IEEE 754 half precision.
    Fp16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// bfloat16.
    Bf16,
    /// Unsigned byte.
    U8,
    /// Signed, 32 bit.
    I32,
    /// Signed, 64 bit.
    I64,
}

impl TensorType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::Fp16 | Self::Bf16 => 2,
            Self::Fp32 | Self::I32 => 4,
            Self::Fp64 | Self::I64 => 8,
        }
    }

    /// The name in messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fp16 => "fp16",
            Self::Fp32 => "fp32",
            Self::Fp64 => "fp64",
            Self::Bf16 => "bf16",
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
        }
    }
}

/// A dense tensor: row-major, little-endian elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Sizes of the dimensions; none for a scalar.
    pub dimensions: Vec<u32>,
    /// Type of the elements.
    pub ty: TensorType,
    /// The elements' bytes. Shared, not copied, on its way to the model and back.
    pub data: Bytes,
}

impl Tensor {
    /// Most dimensions of a tensor here; ONNX Runtime's own kernels rarely go beyond 8.
    pub const MAX_RANK: usize = 16;

    /// Checks that shape and bytes agree, which nothing a guest says can be trusted to.
    pub fn check(&self) -> Result<(), InferenceError> {
        if self.dimensions.len() > Self::MAX_RANK {
            return Err(InferenceError::invalid(format!(
                "a tensor of {} dimensions; at most {} are allowed",
                self.dimensions.len(),
                Self::MAX_RANK
            )));
        }
        let elements = self
            .dimensions
            .iter()
            .try_fold(1u64, |all, one| all.checked_mul(u64::from(*one)));
        let bytes = elements.and_then(|elements| elements.checked_mul(self.ty.size() as u64));
        if bytes == Some(self.data.len() as u64) {
            Ok(())
        } else {
            Err(InferenceError::invalid(format!(
                "dimensions {:?} of {} do not fit {} bytes of data",
                self.dimensions,
                self.ty.as_str(),
                self.data.len()
            )))
        }
    }
}

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Its element type.
    pub ty: TensorType,
    /// Its dimensions; -1 is any size.
    pub shape: Vec<i64>,
}

/// What a loaded model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ModelInfo {
    /// The inputs, in the graph's order.
    pub inputs: Vec<Port>,
    /// The outputs wasi-nn can carry, in the graph's order.
    pub outputs: Vec<Port>,
    /// Outputs of a type wasi-nn has no word for (bool, string, maps); they are not computed.
    pub unsupported_outputs: Vec<String>,
}

/// Where a model's bytes are.
#[derive(Debug, Clone)]
pub enum ModelSource {
    /// A verified artifact in the store.
    Artifact {
        /// Its digest: with the options, the identity of the session.
        digest: Digest,
        /// Its file.
        path: PathBuf,
    },
    /// Bytes that a guest passed to `load`.
    Bytes(Bytes),
}

/// Asks for a session of a model.
#[derive(Debug, Clone)]
pub struct LoadModel {
    /// The model.
    pub source: ModelSource,
    /// On whose behalf.
    pub function: FunctionName,
    /// Whether that function shares an inference host with the others.
    pub isolation: InferenceIsolation,
    /// When the caller gives up.
    pub deadline: Instant,
}

/// A session, as named across the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// The answer to [`LoadModel`]. The caller has one use of the session and must release it.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    /// The session.
    pub session: SessionId,
    /// What it takes and gives.
    pub info: std::sync::Arc<ModelInfo>,
    /// What loading it took, and the memory it takes.
    pub cost: RungCost,
}

/// How long a function wants a session kept that it does not use any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepWish {
    /// Who wants it. The last word of a function is the one that counts.
    pub function: FunctionName,
    /// Until when; nothing for the time-to-live of sessions.
    pub until: Option<Instant>,
}

impl KeepWish {
    /// It is left to the time-to-live.
    pub fn none(function: FunctionName) -> Self {
        Self {
            function,
            until: None,
        }
    }
}

/// Asks for one inference.
#[derive(Debug)]
pub struct Compute {
    /// The session.
    pub session: SessionId,
    /// Who computes, as the platform knows it: what its inputs do to an inference host is held against this function.
    pub function: FunctionName,
    /// The inputs by name.
    pub inputs: Vec<(String, Tensor)>,
    /// When it must be done.
    pub deadline: Instant,
}

/// The outputs by name, in the graph's order.
pub type Computed = Vec<(String, Tensor)>;

/// Why a model could not be loaded or run: wasi-nn's error codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum InferenceErrorKind {
    /// A wrong name, shape, type or length.
    InvalidArgument,
    /// Not a model that can be read.
    InvalidEncoding,
    /// The deadline passed.
    Timeout,
    /// ONNX Runtime failed.
    Runtime,
    /// Not something this host does.
    Unsupported,
    /// Over a memory budget.
    TooLarge,
    /// No such model or session.
    NotFound,
    /// Not allowed to this function.
    Security,
    /// ONNX Runtime is not installed.
    Unavailable,
    /// The model kept killing its inference host and is kept away from one for a while.
    Quarantined,
}

/// A failed load or compute. The message may quote the model, so it goes to the guest and to the log, not to callers.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct InferenceError {
    /// The code.
    pub kind: InferenceErrorKind,
    /// Says what to change.
    pub message: String,
}

impl InferenceError {
    /// An error of any kind.
    pub fn new(kind: InferenceErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The guest's mistake.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(InferenceErrorKind::InvalidArgument, message)
    }

    /// The platform's kind for an error that ends a start or a deploy.
    pub fn error_kind(&self) -> ErrorKind {
        match self.kind {
            InferenceErrorKind::Timeout => ErrorKind::StartTimeout,
            InferenceErrorKind::TooLarge => ErrorKind::BudgetExceeded,
            InferenceErrorKind::Unavailable => ErrorKind::Unavailable,
            InferenceErrorKind::NotFound => ErrorKind::Corrupt,
            InferenceErrorKind::Quarantined => ErrorKind::Quarantined,
            InferenceErrorKind::InvalidArgument
            | InferenceErrorKind::InvalidEncoding
            | InferenceErrorKind::Runtime
            | InferenceErrorKind::Unsupported
            | InferenceErrorKind::Security => ErrorKind::InvalidModel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dimensions: &[u32], ty: TensorType, bytes: usize) -> Tensor {
        Tensor {
            dimensions: dimensions.to_vec(),
            ty,
            data: Bytes::from(vec![0; bytes]),
        }
    }

    #[test]
    fn shape_and_length_must_agree() {
        assert!(tensor(&[2, 3], TensorType::Fp32, 24).check().is_ok());
        assert!(tensor(&[], TensorType::I64, 8).check().is_ok());
        assert!(tensor(&[0, 7], TensorType::U8, 0).check().is_ok());
        assert!(tensor(&[2, 3], TensorType::Fp32, 23).check().is_err());
        assert!(
            tensor(&[u32::MAX, u32::MAX, u32::MAX], TensorType::Fp64, 8)
                .check()
                .is_err()
        );
        assert!(tensor(&[1; 17], TensorType::U8, 1).check().is_err());
    }
}
