//! Compiled code on disk, keyed by artifact digest and by the engine's compatibility hash, and checked before use.
//!
//! Loading compiled code means running it, so a file is only used if its bytes still have the SHA-256 that was written
//! beside it; anything else is removed and compiled again. The cache is disposable: deleting it costs time only.

use fnctl_core::Digest;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use wasmtime::Engine;

/// Folder under the cache's root that is another cache's root.
pub(crate) const NESTED: &str = "concurrent";

pub(crate) struct CompileCache {
    folder: PathBuf,
}

impl CompileCache {
    /// The cache of `engine` under `root`. Folders of other engines' code are removed: nothing can use them again.
    pub(crate) fn open(root: &Path, engine: &Engine) -> std::io::Result<Self> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let name = format!("{:016x}", hasher.finish());
        let folder = root.join(&name);
        fs::create_dir_all(&folder)?;
        for entry in fs::read_dir(root)?.flatten() {
            let known = entry.file_name() == *name || entry.file_name() == *NESTED;
            if !known && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { folder })
    }

    fn code(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.cwasm"))
    }

    fn seal(&self, digest: &Digest) -> PathBuf {
        self.folder.join(format!("{digest}.sha256"))
    }

    /// The compiled code of an artifact, if it is there and intact: the very bytes that were checked.
    pub(crate) fn read(&self, digest: &Digest) -> Option<Vec<u8>> {
        let code = fs::read(self.code(digest)).ok()?;
        let seal = fs::read_to_string(self.seal(digest)).ok();
        if seal.as_deref() == Some(Digest::of(&code).to_string().as_str()) {
            return Some(code);
        }
        tracing::warn!(%digest, "compiled code does not match its seal; compiling again");
        self.remove(digest);
        None
    }

    /// Removes the code of artifacts that are no longer wanted. Returns how many.
    pub(crate) fn retain(&self, wanted: impl Fn(&Digest) -> bool) -> usize {
        let entries = fs::read_dir(&self.folder)
            .map(|entries| entries.flatten().collect::<Vec<_>>())
            .unwrap_or_default();
        let digests = entries.iter().filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".cwasm")?
                .parse()
                .ok()
        });
        digests
            .filter(|digest| !wanted(digest))
            .map(|digest| self.remove(&digest))
            .count()
    }

    /// Keeps compiled code. Failing to is a slower start later, no error.
    pub(crate) fn keep(&self, digest: &Digest, code: &[u8]) {
        let write = |path: PathBuf, bytes: &[u8]| -> std::io::Result<()> {
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let temporary = path.with_extension(format!("tmp{}-{number}", std::process::id()));
            let mut file = File::create(&temporary)?;
            file.write_all(bytes)?;
            fs::rename(temporary, path)
        };
        let seal = Digest::of(code).to_string();
        // Code first: a seal without code is nothing, code without a seal is thrown away.
        if let Err(error) =
            write(self.code(digest), code).and_then(|()| write(self.seal(digest), seal.as_bytes()))
        {
            tracing::warn!(%digest, %error, "compiled code was not kept");
            self.remove(digest);
        }
    }

    fn remove(&self, digest: &Digest) {
        let _ = fs::remove_file(self.seal(digest));
        let _ = fs::remove_file(self.code(digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_changed_on_disk_is_not_used() {
        let root = tempfile::tempdir().unwrap();
        let stale = root.path().join("0123");
        fs::create_dir(&stale).unwrap();
        let cache = CompileCache::open(root.path(), &Engine::default()).unwrap();
        assert!(!stale.exists(), "another engine's code is removed");
        let digest = Digest::of(b"artifact");
        assert!(cache.read(&digest).is_none());
        cache.keep(&digest, b"code");
        assert_eq!(cache.read(&digest).unwrap(), b"code");
        fs::write(cache.code(&digest), b"evil").unwrap();
        assert!(cache.read(&digest).is_none());
        assert!(!cache.code(&digest).exists());
    }

    #[test]
    fn code_of_removed_artifacts_goes() {
        let root = tempfile::tempdir().unwrap();
        let cache = CompileCache::open(root.path(), &Engine::default()).unwrap();
        let (wanted, unwanted) = (Digest::of(b"wanted"), Digest::of(b"unwanted"));
        cache.keep(&wanted, b"code");
        cache.keep(&unwanted, b"code");
        assert_eq!(cache.retain(|digest| *digest == wanted), 1);
        assert!(cache.read(&wanted).is_some() && cache.read(&unwanted).is_none());
    }
}
