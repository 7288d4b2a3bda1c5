//! Noticing saves: which files matter, when one has really changed, and waiting until an editor is done.
//!
//! A folder is watched only if something in it could matter, so a compiler writing thousands of files into `target/` is
//! not heard. A file has changed when its content has: a build that writes the same sources again starts no other build.

use anyhow::Context;
use fnctl_core::Digest;
use glob::Pattern;
use notify::event::EventKind;
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// How long it must be quiet after a save: editors write several times.
const QUIET: Duration = Duration::from_millis(50);
/// How long that may take at most.
const MAX_WAIT: Duration = Duration::from_millis(500);
/// Files over this many bytes are told apart by size and time instead of content.
const MAX_CONTENT: u64 = 16 << 20;
/// More paths than this at once are not remembered one by one.
const MAX_PENDING: usize = 4096;
/// Folders that tools write and nobody edits.
const TOOLS: [&str; 6] = [
    "target",
    "node_modules",
    "__pycache__",
    "venv",
    "dist",
    "build",
];

/// Which files matter.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// The project, and folders beside it that the build reads.
    pub(crate) roots: Vec<PathBuf>,
    /// Files and folders that the build writes.
    pub(crate) written: Vec<PathBuf>,
    /// Only these of the first root, if there are any; and always the files in `always`.
    pub(crate) globs: Vec<Pattern>,
    pub(crate) always: Vec<PathBuf>,
}

impl Rules {
    fn is_tools(&self, path: &Path) -> bool {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        name.starts_with('.') || self.written.iter().any(|written| path == written)
    }

    /// Whether what is in a folder can matter.
    fn enters(&self, folder: &Path) -> bool {
        let is_tool = folder
            .file_name()
            .is_some_and(|name| TOOLS.iter().any(|tool| name == *tool));
        // A glob that names such a folder is a wish to watch it.
        (!is_tool || !self.globs.is_empty()) && !self.is_tools(folder)
    }

    /// Whether a change of a file is a save.
    fn matters(&self, file: &Path) -> bool {
        if self.always.iter().any(|always| always == file) {
            return true;
        }
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("");
        // What editors write beside a file.
        let is_editors = name.ends_with('~')
            || name.ends_with(".tmp")
            || name.ends_with(".part")
            || name == "4913";
        if is_editors || self.is_tools(file) {
            return false;
        }
        let inside = self
            .roots
            .first()
            .and_then(|root| file.strip_prefix(root).ok());
        match inside {
            Some(relative) if !self.globs.is_empty() => {
                self.globs.iter().any(|glob| glob.matches_path(relative))
            }
            _ => true,
        }
    }
}

/// What a file is, as far as builds can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fingerprint {
    Content(Digest),
    Large(u64, Option<SystemTime>),
}

fn fingerprint(file: &Path) -> Option<Fingerprint> {
    let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
    if metadata.len() > MAX_CONTENT {
        return Some(Fingerprint::Large(metadata.len(), metadata.modified().ok()));
    }
    let digest = Digest::of_reader(&mut File::open(file).ok()?).ok()?;
    Some(Fingerprint::Content(digest))
}

/// What the system has told and nobody has looked at yet.
#[derive(Debug, Default)]
struct Pending {
    /// Each with when it was first told.
    paths: BTreeMap<PathBuf, Instant>,
    /// Too much happened to tell: everything is looked at.
    all: Option<Instant>,
    events: u64,
    /// Of the events, those that somebody has waited for.
    settled: u64,
    closed: bool,
}

#[derive(Debug, Default)]
struct Inbox {
    pending: Mutex<Pending>,
    arrived: Condvar,
}

impl Inbox {
    fn receive(&self, event: notify::Result<Event>) {
        let mut pending = self.pending.lock();
        let now = Instant::now();
        match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => return,
            Ok(event) if !event.need_rescan() && pending.paths.len() < MAX_PENDING => {
                for path in event.paths {
                    pending.paths.entry(path).or_insert(now);
                }
            }
            _ => {
                pending.all.get_or_insert(now);
            }
        }
        pending.events += 1;
        self.arrived.notify_all();
    }
}

/// Lets another thread end the waiting.
#[derive(Debug, Clone)]
pub(crate) struct Closer(Arc<Inbox>);

impl Closer {
    pub(crate) fn close(&self) {
        self.0.pending.lock().closed = true;
        self.0.arrived.notify_all();
    }
}

/// One or more saves.
#[derive(Debug)]
pub(crate) struct Saved {
    /// When the first of them was noticed.
    pub(crate) since: Instant,
    pub(crate) files: Vec<PathBuf>,
}

/// Watches a project.
pub(crate) struct Watch {
    watcher: RecommendedWatcher,
    inbox: Arc<Inbox>,
    rules: Rules,
    seen: BTreeMap<PathBuf, Fingerprint>,
}

impl Watch {
    /// Watches from now on; what changed before is not told.
    pub(crate) fn start(rules: Rules) -> anyhow::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let receiver = inbox.clone();
        let watcher = notify::recommended_watcher(move |event| receiver.receive(event))
            .context("files cannot be watched here")?;
        let mut watch = Self {
            watcher,
            inbox,
            rules: Rules::default(),
            seen: BTreeMap::new(),
        };
        watch.set_rules(rules)?;
        Ok(watch)
    }

    pub(crate) fn closer(&self) -> Closer {
        Closer(self.inbox.clone())
    }

    /// Watches by other rules from now on. What is watched already stays so.
    pub(crate) fn set_rules(&mut self, rules: Rules) -> anyhow::Result<()> {
        self.rules = rules;
        for root in self.rules.roots.clone() {
            for file in self.enter(&root)? {
                if let Some(found) = fingerprint(&file) {
                    self.seen.entry(file).or_insert(found);
                }
            }
        }
        Ok(())
    }

    /// Watches a folder and those in it, and returns the files that matter.
    fn enter(&mut self, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
        match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
            // It was there for a moment, or it is somebody else's.
            Err(error) if is_out_of_reach(&error) => return Ok(Vec::new()),
            watched => watched.with_context(|| {
                format!("{} cannot be watched; where the limit is reached, raise fs.inotify.max_user_watches", folder.display())
            })?,
        }
        let mut files = Vec::new();
        // A folder that goes while it is looked at has no files any more.
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && self.rules.enters(&path) => {
                    files.extend(self.enter(&path)?)
                }
                Ok(kind) if !kind.is_dir() && self.rules.matters(&path) => files.push(path),
                _ => {}
            }
        }
        Ok(files)
    }

    /// Waits for the next save. None when closed.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<Saved>> {
        loop {
            let Some((paths, all)) = self.settle() else {
                return Ok(None);
            };
            let files = self.changed(paths, all)?;
            if let Some(since) = files.values().min() {
                return Ok(Some(Saved {
                    since: *since,
                    files: files.into_keys().collect(),
                }));
            }
        }
    }

    /// Waits until something happened and then nothing for a while.
    fn settle(&self) -> Option<(BTreeMap<PathBuf, Instant>, Option<Instant>)> {
        let mut pending = self.inbox.pending.lock();
        while pending.events == pending.settled {
            if pending.closed {
                return None;
            }
            self.inbox.arrived.wait(&mut pending);
        }
        let since = Instant::now();
        loop {
            let events = pending.events;
            self.inbox.arrived.wait_for(&mut pending, QUIET);
            if pending.closed {
                return None;
            }
            if pending.events == events || since.elapsed() >= MAX_WAIT {
                break;
            }
        }
        pending.settled = pending.events;
        Some((std::mem::take(&mut pending.paths), pending.all.take()))
    }

    /// The files whose content is another, each with when that was told.
    fn changed(
        &mut self,
        paths: BTreeMap<PathBuf, Instant>,
        all: Option<Instant>,
    ) -> anyhow::Result<BTreeMap<PathBuf, Instant>> {
        let mut files = BTreeMap::new();
        if let Some(since) = all {
            for root in self.rules.roots.clone() {
                files.extend(self.enter(&root)?.into_iter().map(|file| (file, since)));
            }
            files.extend(self.seen.keys().map(|file| (file.clone(), since)));
        }
        for (path, since) in paths {
            if path.is_dir() {
                if self.rules.enters(&path) && !self.rules.roots.contains(&path) {
                    files.extend(self.enter(&path)?.into_iter().map(|file| (file, since)));
                }
            } else if self.rules.matters(&path) {
                files.insert(path, since);
            }
        }
        files.retain(|file, _| self.has_changed(file));
        Ok(files)
    }

    fn has_changed(&mut self, file: &Path) -> bool {
        match fingerprint(file) {
            Some(found) => self.seen.insert(file.to_path_buf(), found.clone()) != Some(found),
            None => self.seen.remove(file).is_some(),
        }
    }
}

fn is_out_of_reach(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => matches!(
            error.kind(),
            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(root: &Path) -> Rules {
        Rules {
            roots: vec![root.to_path_buf()],
            written: vec![root.join("a.wasm"), root.join("out")],
            ..Rules::default()
        }
    }

    #[test]
    fn only_what_people_edit_matters() {
        let mut rules = rules(Path::new("/p"));
        for yes in [
            "/p/src/lib.rs",
            "/p/function.toml",
            "/p/models/m.onnx",
            "/other/src/lib.rs",
        ] {
            assert!(rules.matters(Path::new(yes)), "{yes}");
        }
        for no in [
            "/p/a.wasm",
            "/p/.lib.rs.swp",
            "/p/lib.rs~",
            "/p/4913",
            "/p/a.part",
        ] {
            assert!(!rules.matters(Path::new(no)), "{no}");
        }
        for no in ["/p/target", "/p/.git", "/p/node_modules", "/p/out"] {
            assert!(!rules.enters(Path::new(no)), "{no}");
        }
        assert!(rules.enters(Path::new("/p/src")));
        rules.globs = vec![Pattern::new("src/**/*.py").unwrap()];
        rules.always = vec!["/p/function.toml".into()];
        assert!(
            rules.matters(Path::new("/p/src/x/y.py"))
                && rules.matters(Path::new("/p/function.toml"))
        );
        assert!(
            !rules.matters(Path::new("/p/src/x/y.txt")) && !rules.matters(Path::new("/p/y.py"))
        );
    }

    #[test]
    fn saves_are_told_once_and_what_is_the_same_is_no_save() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name);
        std::fs::write(at("one"), "1").unwrap();
        let mut watch = Watch::start(rules(&root)).unwrap();
        // The same content, a build's output and a hidden file first: none of them is a save.
        std::fs::write(at("one"), "1").unwrap();
        std::fs::write(at("a.wasm"), "wasm").unwrap();
        std::fs::write(at(".hidden"), "x").unwrap();
        std::fs::create_dir_all(at("src/deep")).unwrap();
        std::fs::write(at("src/deep/new.rs"), "x").unwrap();
        let saved = watch.next().unwrap().unwrap();
        assert_eq!(saved.files, [at("src/deep/new.rs")]);
        // As editors do it: a new file takes the old one's place.
        std::fs::write(at("one.tmp"), "2").unwrap();
        std::fs::rename(at("one.tmp"), at("one")).unwrap();
        assert_eq!(watch.next().unwrap().unwrap().files, [at("one")]);
        std::fs::write(at("src/deep/new.rs"), "y").unwrap();
        assert_eq!(
            watch.next().unwrap().unwrap().files,
            [at("src/deep/new.rs")]
        );
        std::fs::remove_file(at("one")).unwrap();
        assert_eq!(watch.next().unwrap().unwrap().files, [at("one")]);
        watch.closer().close();
        assert!(watch.next().unwrap().is_none());
    }
}
