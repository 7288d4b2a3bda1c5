//! Artifacts as files. Each lies in a folder of its own, `artifacts/{sha256}/blob`, so that nothing which resolves paths
//! beside it (an ONNX model with external data) can name another artifact.

use crate::durable::Durable;
use crate::{StoreError, open_folder};
use fnctl_core::ids::Digest;
use fnctl_core::{Body, BodyError, ErrorKind, Failure};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use sha2::Digest as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::io::AsyncWriteExt;

#[derive(Debug)]
pub(crate) struct Artifacts {
    folder: PathBuf,
    incoming: PathBuf,
    grace: Duration,
    durable: Arc<Durable>,
    next: AtomicU64,
    /// Held while an artifact settles, is asked for, or goes, so that none goes while somebody relies on it.
    gate: Mutex<()>,
}

/// Removes a temporary file that came to nothing.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Artifacts {
    pub(crate) fn open(
        data: &Path,
        grace: Duration,
        durable: Arc<Durable>,
    ) -> Result<Self, StoreError> {
        let folder = data.join("artifacts");
        let incoming = data.join("incoming");
        fs::create_dir_all(&folder).map_err(StoreError::io("cannot make the artifacts folder"))?;
        // Uploads that a crash cut off.
        let _ = fs::remove_dir_all(&incoming);
        fs::create_dir_all(&incoming).map_err(StoreError::io("cannot make the incoming folder"))?;
        open_folder(data)
            .and_then(|folder| durable.sync(&folder))
            .map_err(StoreError::io("cannot force the data folder to disk"))?;
        Ok(Self {
            folder,
            incoming,
            grace,
            durable,
            next: AtomicU64::new(0),
            gate: Mutex::new(()),
        })
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.folder.join(digest.to_string()).join("blob")
    }

    pub(crate) fn locate(&self, digest: &Digest) -> Option<(PathBuf, u64)> {
        let path = self.blob(digest);
        let size = fs::metadata(&path).ok()?.len();
        Some((path, size))
    }

    pub(crate) async fn put(
        self: &Arc<Self>,
        mut body: Body,
        limit: u64,
    ) -> Result<(Digest, u64), Failure> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let temporary = Temporary(self.incoming.join(format!("{number}.tmp")));
        let disk = |error: std::io::Error| {
            Failure::from(StoreError::Io {
                what: "cannot write an artifact",
                source: error,
            })
        };
        let mut file = tokio::fs::File::create(&temporary.0).await.map_err(disk)?;
        let mut hasher = sha2::Sha256::new();
        let mut size = 0u64;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(upload_failure)?.into_data() else {
                continue;
            };
            size = size.saturating_add(data.len() as u64);
            if size > limit {
                return Err(Failure::new(
                    ErrorKind::PayloadTooLarge,
                    format!(
                        "an artifact may have at most {limit} bytes; raise gateway.max_artifact"
                    ),
                ));
            }
            hasher.update(&data);
            file.write_all(&data).await.map_err(disk)?;
        }
        file.flush().await.map_err(disk)?;
        let file = file.into_std().await;
        let digest = Digest::from_bytes(hasher.finalize().into());
        let this = self.clone();
        crate::blocking(move || {
            this.settle(&digest, &file, &temporary.0)
                .map_err(Failure::from)
        })
        .await?;
        Ok((digest, size))
    }

    /// Moves a complete upload to its place; afterwards it survives a power failure.
    fn settle(&self, digest: &Digest, file: &File, temporary: &Path) -> Result<(), StoreError> {
        let blob = self.blob(digest);
        let folder = self.folder.join(digest.to_string());
        let failed = StoreError::io("cannot keep an artifact");
        let settle = || -> std::io::Result<()> {
            self.durable.sync(file)?;
            let _gate = self.gate.lock();
            self.durable.before_write();
            fs::create_dir_all(&folder)?;
            self.durable.before_write();
            // Also over the same bytes of an earlier upload, which a crash may have left short of the disk.
            fs::rename(temporary, &blob)?;
            touch(&folder);
            self.durable.sync(&open_folder(&folder)?)?;
            self.durable.sync(&open_folder(&self.folder)?)
        };
        settle().map_err(failed)
    }

    pub(crate) fn verify(&self, digest: &Digest) -> Result<PathBuf, Failure> {
        let path = self.blob(digest);
        let mut file = File::open(&path).map_err(|error| {
            Failure::new(
                ErrorKind::NotFound,
                format!("artifact {digest} is not in the store; upload it first"),
            )
            .because(error)
        })?;
        {
            let _gate = self.gate.lock();
            touch(&self.folder.join(digest.to_string()));
        }
        let found =
            Digest::of_reader(&mut file).map_err(StoreError::io("cannot read an artifact"))?;
        if found != *digest {
            return Err(Failure::new(
                ErrorKind::Corrupt,
                format!(
                    "artifact {digest} on disk no longer has its digest; remove it from the data folder and deploy it again"
                ),
            ));
        }
        Ok(path)
    }

    /// Removes artifacts that nobody uploaded or asked for within the grace period and that `used` does not know.
    pub(crate) fn collect(&self, used: impl Fn(&Digest) -> bool) -> Result<usize, Failure> {
        let entries =
            fs::read_dir(&self.folder).map_err(StoreError::io("cannot list the artifacts"))?;
        let mut removed = 0;
        for entry in entries.flatten() {
            let Some(digest) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // Looked at and removed in one go: whoever asks for it meanwhile waits, and then does not find it.
            let _gate = self.gate.lock();
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified
                .ok()
                .and_then(|modified| SystemTime::now().duration_since(modified).ok());
            if age.is_none_or(|age| age < self.grace) || used(&digest) {
                continue;
            }
            match fs::remove_dir_all(entry.path()) {
                Ok(()) => removed += 1,
                Err(error) => tracing::warn!(%digest, %error, "an unused artifact was not removed"),
            }
        }
        Ok(removed)
    }
}

/// Makes a folder's modification time now: the grace period starts again.
fn touch(folder: &Path) {
    if let Ok(folder) = open_folder(folder) {
        let _ = folder.set_modified(SystemTime::now());
    }
}

fn upload_failure(error: BodyError) -> Failure {
    match error {
        BodyError::TooLarge(limit) => Failure::new(
            ErrorKind::PayloadTooLarge,
            format!("an artifact may have at most {limit} bytes; raise gateway.max_artifact"),
        ),
        BodyError::TimedOut => {
            Failure::new(ErrorKind::SlowClient, "the upload took too long; try again")
        }
        BodyError::Aborted(cause) => {
            Failure::new(ErrorKind::BadRequest, "the upload ended early; try again").because(cause)
        }
    }
}
