//! A model as the platform keeps it: what it is, and the descriptor from which any host can load it.

use super::few::Few;
use crate::sessions::{Loaded, SessionKey};
use fnctl_core::ids::{Digest, FunctionName};
use fnctl_core::inference::{
    InferenceError, InferenceErrorKind, LoadModel, ModelInfo, ModelSource, SessionId,
};
use fnctl_core::ladder::RungCost;
use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The bytes of a model: a file whose digest was checked, or sealed memory.
#[derive(Debug, Clone)]
pub(crate) struct ModelFile {
    pub(crate) descriptor: Arc<OwnedFd>,
    pub(crate) length: u64,
}

/// What any host needs to load a session.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) id: SessionId,
    pub(crate) key: SessionKey,
    /// On whose behalf it was loaded first.
    pub(crate) function: FunctionName,
    pub(crate) file: ModelFile,
    /// Set once, when nobody has a use of it any more: from then on no host loads it.
    retired: AtomicBool,
}

impl Wanted {
    pub(crate) fn new(
        id: SessionId,
        key: SessionKey,
        function: FunctionName,
        file: ModelFile,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            key,
            function,
            file,
            retired: AtomicBool::new(false),
        })
    }

    /// From now on no host loads it. Those that have it are told by who calls this.
    pub(crate) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }
}

/// A session, wherever it is loaded at the moment.
pub(crate) struct Model {
    pub(crate) wanted: Arc<Wanted>,
    pub(crate) info: Arc<ModelInfo>,
    /// What its first load took.
    pub(crate) cost: RungCost,
    /// Bytes that its outputs took so far.
    pub(crate) room: AtomicUsize,
    /// Functions that ever had a use of it.
    pub(crate) users: Mutex<Few<FunctionName>>,
}

impl Loaded for Model {
    fn info(&self) -> Arc<ModelInfo> {
        self.info.clone()
    }

    fn cost(&self) -> RungCost {
        self.cost
    }
}

fn unreadable(error: &io::Error) -> InferenceError {
    InferenceError::new(
        InferenceErrorKind::NotFound,
        format!("the model cannot be read: {error}"),
    )
}

impl ModelFile {
    /// Opens what a request names. Blocks.
    pub(crate) fn open(request: &LoadModel) -> Result<Self, InferenceError> {
        match &request.source {
            ModelSource::Artifact { digest, path } => {
                // One descriptor for the check and for every load: what was checked is what is loaded.
                let mut file = File::open(path).map_err(|error| unreadable(&error))?;
                let found = Digest::of_reader(&mut file).map_err(|error| unreadable(&error))?;
                if found != *digest {
                    return Err(InferenceError::new(
                        InferenceErrorKind::NotFound,
                        format!(
                            "the model on disk has digest {found}, not {digest}; deploy it again"
                        ),
                    ));
                }
                Self::of(file).map_err(|error| unreadable(&error))
            }
            ModelSource::Bytes(bytes) => Self::sealed(bytes).map_err(|error| {
                InferenceError::new(
                    InferenceErrorKind::Runtime,
                    format!("the model cannot be put into shared memory: {error}"),
                )
            }),
        }
    }

    fn of(mut file: File) -> io::Result<Self> {
        let length = file.seek(io::SeekFrom::End(0))?;
        Ok(Self {
            descriptor: Arc::new(file.into()),
            length,
        })
    }

    /// Bytes of a guest, in memory that nobody can change any more.
    fn sealed(bytes: &[u8]) -> io::Result<Self> {
        let memory = rustix::fs::memfd_create(
            "fnctl-model",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )?;
        let mut file = File::from(memory);
        file.write_all(bytes)?;
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
        )?;
        Self::of(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_bytes_cannot_be_changed_any_more() {
        let model = ModelFile::sealed(b"model").unwrap();
        assert_eq!(model.length, 5);
        assert!(rustix::io::pwrite(&*model.descriptor, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&*model.descriptor, 0).is_err());
    }
}
