//! Functions, versions and aliases: in memory for reading, in sled for keeping.

use crate::durable::Durable;
use crate::records::{self, FunctionRecord};
use crate::{StoreError, open_folder};
use dashmap::DashMap;
use fnctl_core::deploy::{Draft, live_alias};
use fnctl_core::ids::{AliasName, FunctionName, VersionNumber};
use fnctl_core::version::{Alias, Function, LIVE, Version};
use fnctl_core::{ErrorKind, Failure};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

#[derive(Debug)]
pub(crate) struct Functions {
    view: DashMap<FunctionName, Arc<Function>>,
    db: sled::Db,
    /// sled's own file: its `flush` starts the write-back on Linux but does not wait for the disk (`sync_file_range`),
    /// so the file is forced to disk through this descriptor.
    file: File,
    keep_versions: usize,
    /// Set while a write is under way, and for good after one that failed. There is one writer at a time.
    poisoned: AtomicBool,
    durable: Arc<Durable>,
}

impl Functions {
    pub(crate) fn open(
        folder: &Path,
        keep_versions: usize,
        durable: Arc<Durable>,
    ) -> Result<Self, StoreError> {
        let db = open_database(folder)?;
        let file = File::open(folder.join("db"))
            .map_err(StoreError::io("cannot open the database's file"))?;
        // The database's own entry in its folder, and the folder's in the data folder.
        for folder in [Some(folder), folder.parent()].into_iter().flatten() {
            open_folder(folder)
                .and_then(|folder| durable.sync(&folder))
                .map_err(StoreError::io("cannot force the data folder to disk"))?;
        }
        let functions = Self {
            view: DashMap::new(),
            db,
            file,
            keep_versions: keep_versions.max(2),
            poisoned: AtomicBool::new(false),
            durable,
        };
        functions.read_all()?;
        Ok(functions)
    }

    fn read_all(&self) -> Result<(), StoreError> {
        let mut versions: BTreeMap<FunctionName, BTreeMap<VersionNumber, Arc<Version>>> =
            BTreeMap::new();
        for entry in self.db.scan_prefix(records::VERSIONS) {
            let (key, bytes) = entry?;
            let version: Version = records::decode(&key, &bytes)?;
            versions
                .entry(version.function.clone())
                .or_default()
                .insert(version.number, Arc::new(version));
        }
        for entry in self.db.scan_prefix(records::FUNCTIONS) {
            let (key, bytes) = entry?;
            let record: FunctionRecord = records::decode(&key, &bytes)?;
            let text = String::from_utf8_lossy(&key);
            let name: FunctionName = text
                .strip_prefix(records::FUNCTIONS)
                .unwrap_or_default()
                .parse()
                .map_err(|error: fnctl_core::ids::IdError| StoreError::Record {
                    key: text.clone().into_owned(),
                    reason: error.to_string(),
                })?;
            if !record.removed {
                let versions = versions.remove(&name).unwrap_or_default();
                self.view.insert(
                    name.clone(),
                    Arc::new(Function {
                        name,
                        versions,
                        aliases: record.aliases,
                    }),
                );
            }
        }
        Ok(())
    }

    pub(crate) fn get(&self, name: &FunctionName) -> Option<Arc<Function>> {
        self.view.get(name).map(|function| function.value().clone())
    }

    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        let mut all: Vec<_> = self
            .view
            .iter()
            .map(|entry| entry.value().clone())
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.durable.syncs()
    }

    pub(crate) fn commit(&self, draft: Draft) -> Result<Arc<Version>, Failure> {
        let _writer = self.durable.writer.lock();
        let name = draft.function;
        let record = self.record(&name)?;
        let number = record
            .as_ref()
            .map_or(VersionNumber(1), |record| record.next);
        let old = self.get(&name);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let version = Arc::new(Version {
            function: name.clone(),
            number,
            artifact: draft.artifact,
            models: draft.models,
            config: draft.config,
            created_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        });
        let mut function = old.as_deref().cloned().unwrap_or_else(|| Function {
            name: name.clone(),
            versions: BTreeMap::new(),
            aliases: BTreeMap::new(),
        });
        function.versions.insert(number, version.clone());
        function.aliases.insert(live_alias()?, Alias::to(number));
        let forgotten = forget_old(&mut function, self.keep_versions);

        let record = FunctionRecord {
            next: VersionNumber(number.0 + 1),
            removed: false,
            aliases: function.aliases.clone(),
        };
        let mut batch = sled::Batch::default();
        insert(&mut batch, &records::function_key(&name), &record)?;
        insert(
            &mut batch,
            &records::version_key(&version),
            version.as_ref(),
        )?;
        for old in &forgotten {
            batch.remove(records::version_key(old).as_bytes());
        }
        self.write(batch)?;
        self.view.insert(name, Arc::new(function));
        Ok(version)
    }

    pub(crate) fn set_alias(
        &self,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<Alias>,
    ) -> Result<(), Failure> {
        let _writer = self.durable.writer.lock();
        let mut function = self
            .get(name)
            .as_deref()
            .cloned()
            .ok_or_else(|| unknown(name))?;
        match to {
            Some(to) => {
                let known = |number: VersionNumber| function.versions.contains_key(&number);
                if !known(to.version) || to.split.is_some_and(|split| !known(split.version)) {
                    return Err(Failure::new(
                        ErrorKind::Conflict,
                        format!("a version of '{name}' that the alias should point to is gone"),
                    ));
                }
                function.aliases.insert(alias.clone(), to);
            }
            None if alias.as_str() == LIVE => {
                return Err(Failure::new(
                    ErrorKind::Conflict,
                    "the alias 'live' cannot be removed; point it elsewhere, or remove the function",
                ));
            }
            None => {
                function.aliases.remove(alias).ok_or_else(|| {
                    Failure::new(
                        ErrorKind::NotFound,
                        format!("'{name}' has no alias '{alias}'; see `fnctl get {name}`"),
                    )
                })?;
            }
        }
        let next = self
            .record(name)?
            .map_or(VersionNumber(1), |record| record.next);
        let record = FunctionRecord {
            next,
            removed: false,
            aliases: function.aliases.clone(),
        };
        let mut batch = sled::Batch::default();
        insert(&mut batch, &records::function_key(name), &record)?;
        self.write(batch)?;
        self.view.insert(name.clone(), Arc::new(function));
        Ok(())
    }

    pub(crate) fn remove(&self, name: &FunctionName) -> Result<Arc<Function>, Failure> {
        let _writer = self.durable.writer.lock();
        let function = self.get(name).ok_or_else(|| unknown(name))?;
        let next = self
            .record(name)?
            .map_or(VersionNumber(1), |record| record.next);
        let mut batch = sled::Batch::default();
        insert(
            &mut batch,
            &records::function_key(name),
            &FunctionRecord {
                next,
                removed: true,
                aliases: BTreeMap::new(),
            },
        )?;
        for version in function.versions.values() {
            batch.remove(records::version_key(version).as_bytes());
        }
        self.write(batch)?;
        self.view.remove(name);
        Ok(function)
    }

    fn record(&self, name: &FunctionName) -> Result<Option<FunctionRecord>, StoreError> {
        let key = records::function_key(name);
        self.db
            .get(&key)?
            .map(|bytes| records::decode(key.as_bytes(), &bytes))
            .transpose()
    }

    /// Applies a batch atomically and returns when it is on the disk.
    fn write(&self, batch: sled::Batch) -> Result<(), StoreError> {
        if self.poisoned.swap(true, Ordering::SeqCst) {
            return Err(StoreError::Poisoned);
        }
        // Until all of it has succeeded, what the database holds is not what the callers know.
        self.durable.before_write();
        self.db.apply_batch(batch)?;
        self.durable.before_write();
        self.db.flush()?;
        self.durable
            .sync(&self.file)
            .map_err(StoreError::io("cannot force the database to disk"))?;
        self.poisoned.store(false, Ordering::SeqCst);
        Ok(())
    }
}

/// How long to wait for whoever had the database open: sled gives its lock back a moment after the last handle is gone,
/// so a restart would otherwise fail now and then.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

fn open_database(folder: &Path) -> Result<sled::Db, sled::Error> {
    let config = sled::Config::new()
        .path(folder)
        // The default is 1 GB; everything here is in memory once already.
        .cache_capacity(8 << 20)
        // Nothing is written behind a caller's back: every commit flushes for itself.
        .flush_every_ms(None);
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        match config.open() {
            // sled has no kind of its own for a lock that is held.
            Err(sled::Error::Io(error))
                if error.to_string().contains("lock") && Instant::now() < until =>
            {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

fn unknown(name: &FunctionName) -> Failure {
    Failure::new(
        ErrorKind::NotFound,
        format!("there is no function '{name}'; see `fnctl ls`"),
    )
}

fn insert<T: serde::Serialize>(
    batch: &mut sled::Batch,
    key: &str,
    record: &T,
) -> Result<(), StoreError> {
    batch.insert(key.as_bytes(), records::encode(key, record)?);
    Ok(())
}

/// Forgets the oldest versions that no alias names, down to `keep`.
fn forget_old(function: &mut Function, keep: usize) -> Vec<Arc<Version>> {
    let named: HashSet<VersionNumber> = function
        .aliases
        .values()
        .flat_map(|alias| [Some(alias.version), alias.split.map(|split| split.version)])
        .flatten()
        .collect();
    let excess = function.versions.len().saturating_sub(keep);
    let old: Vec<_> = function
        .versions
        .keys()
        .filter(|number| !named.contains(number))
        .take(excess)
        .copied()
        .collect();
    old.iter()
        .filter_map(|number| function.versions.remove(number))
        .collect()
}
