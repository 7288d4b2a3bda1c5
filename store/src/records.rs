//! The records in sled: JSON, each with the version of its format.
//!
//! `f/{function}` holds the numbering and the aliases, `v/{function}/{number}` one version.

use crate::StoreError;
use fnctl_core::ids::{AliasName, FunctionName, VersionNumber};
use fnctl_core::version::{Alias, Version};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format written by this version of fnctl. A record with another number is refused, never guessed at.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    format: u32,
    record: T,
}

/// Only the number, to tell a newer format from a damaged record.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// What is kept of a function besides its versions. It stays when the function is removed, so that no number is ever
/// given twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FunctionRecord {
    /// The number the next version gets.
    pub(crate) next: VersionNumber,
    /// Whether the function was removed.
    pub(crate) removed: bool,
    /// Where the aliases point.
    pub(crate) aliases: BTreeMap<AliasName, Alias>,
}

pub(crate) const FUNCTIONS: &str = "f/";
pub(crate) const VERSIONS: &str = "v/";

pub(crate) fn function_key(name: &FunctionName) -> String {
    format!("{FUNCTIONS}{name}")
}

pub(crate) fn version_key(version: &Version) -> String {
    format!("{VERSIONS}{}/{:010}", version.function, version.number.0)
}

pub(crate) fn encode<T: Serialize>(key: &str, record: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Envelope {
        format: FORMAT,
        record,
    })
    .map_err(|error| StoreError::Record {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}

pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    let unreadable = |reason: String| StoreError::Record {
        key: String::from_utf8_lossy(key).into_owned(),
        reason,
    };
    let FormatOnly { format } =
        serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
    if format != FORMAT {
        return Err(unreadable(format!(
            "format {format}, this fnctl reads {FORMAT}"
        )));
    }
    serde_json::from_slice::<Envelope<T>>(bytes)
        .map(|envelope| envelope.record)
        .map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_format_is_refused_not_guessed_at() {
        let record = FunctionRecord {
            next: VersionNumber(3),
            removed: false,
            aliases: BTreeMap::new(),
        };
        let bytes = encode("f/a", &record).unwrap();
        assert_eq!(decode::<FunctionRecord>(b"f/a", &bytes).unwrap(), record);
        let newer = String::from_utf8(bytes)
            .unwrap()
            .replace("\"format\":1", "\"format\":2");
        let error = decode::<FunctionRecord>(b"f/a", newer.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("format 2"), "{error}");
        assert!(decode::<FunctionRecord>(b"f/a", b"garbage").is_err());
    }
}
