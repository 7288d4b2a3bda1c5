//! Functions, their immutable versions and their movable aliases.

use crate::config::{FunctionConfig, ModelFile};
use crate::ids::{AliasName, Digest, FunctionName, VersionNumber};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The alias that calls without a version or alias go to. `deploy` and `rollback` move it.
pub const LIVE: &str = "live";
/// The selector for the newest version, whether or not it is live.
pub const LATEST: &str = "latest";

/// An immutable, numbered deployment: what runs and under which limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The function this is a version of.
    pub function: FunctionName,
    /// Its number, counting from 1.
    pub number: VersionNumber,
    /// The Wasm module or component.
    pub artifact: Digest,
    /// The declared models by the name the guest loads them by.
    pub models: BTreeMap<String, ModelFile>,
    /// Limits, scaling and environment.
    pub config: FunctionConfig,
    /// When it was deployed, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
}

impl Version {
    /// The key that is unique among all versions of all functions.
    pub fn key(&self) -> VersionKey {
        VersionKey {
            function: self.function.clone(),
            number: self.number,
        }
    }

    /// Every artifact this version needs.
    pub fn artifacts(&self) -> impl Iterator<Item = Digest> + '_ {
        std::iter::once(self.artifact).chain(self.models.values().map(|model| model.digest))
    }
}

/// Function and number together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VersionKey {
    /// The function.
    pub function: FunctionName,
    /// The number.
    pub number: VersionNumber,
}

impl fmt::Display for VersionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.function, self.number)
    }
}

/// Where an alias points: one version, or two with a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alias {
    /// The version that most calls go to.
    pub version: VersionNumber,
    /// A second version and the percentage (1 to 99) of calls that go to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// The second version of a weighted alias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// The second version.
    pub version: VersionNumber,
    /// Percentage of calls, 1 to 99.
    pub percent: u8,
}

impl Alias {
    /// An alias of one version.
    pub fn to(version: VersionNumber) -> Self {
        Self {
            version,
            split: None,
        }
    }

    /// The version for a request whose [`crate::RequestId::draw`] is `draw`.
    pub fn choose(&self, draw: u64) -> VersionNumber {
        match self.split {
            Some(split) if draw % 100 < u64::from(split.percent) => split.version,
            _ => self.version,
        }
    }
}

/// A function with all its versions and aliases, as the store holds it in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its name.
    pub name: FunctionName,
    /// Its versions by number.
    pub versions: BTreeMap<VersionNumber, Arc<Version>>,
    /// Its aliases; `live` always exists.
    pub aliases: BTreeMap<AliasName, Alias>,
}

impl Function {
    /// The newest version.
    pub fn latest(&self) -> Option<&Arc<Version>> {
        self.versions.last_key_value().map(|(_, version)| version)
    }

    /// The alias called [`LIVE`].
    pub fn live(&self) -> Option<Alias> {
        self.aliases
            .iter()
            .find(|(name, _)| name.as_str() == LIVE)
            .map(|(_, alias)| *alias)
    }

    /// The version that `selector` means for a request with this `draw`.
    pub fn resolve(&self, selector: &Selector, draw: u64) -> Option<&Arc<Version>> {
        match selector {
            Selector::Live => self
                .live()
                .and_then(|alias| self.versions.get(&alias.choose(draw))),
            Selector::Latest => self.latest(),
            Selector::Number(number) => self.versions.get(number),
            Selector::Alias(name) => self
                .aliases
                .get(name)
                .and_then(|alias| self.versions.get(&alias.choose(draw))),
        }
    }
}

/// Which version a caller means: the part behind the colon in `/fn/{name}:{selector}`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// Nothing was said: the alias `live`.
    Live,
    /// The newest version.
    Latest,
    /// A version by its number.
    Number(VersionNumber),
    /// A version by an alias.
    Alias(AliasName),
}

impl FromStr for Selector {
    type Err = crate::ids::IdError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == LIVE {
            Ok(Self::Live)
        } else if text == LATEST {
            Ok(Self::Latest)
        } else if let Ok(number) = text.parse::<u32>() {
            Ok(Self::Number(VersionNumber(number)))
        } else {
            text.parse().map(Self::Alias)
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str(LIVE),
            Self::Latest => f.write_str(LATEST),
            Self::Number(number) => number.fmt(f),
            Self::Alias(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weighted_alias_splits_by_the_draw() {
        let alias = Alias {
            version: VersionNumber(1),
            split: Some(Split {
                version: VersionNumber(2),
                percent: 10,
            }),
        };
        let second = (0..1000)
            .filter(|draw| alias.choose(*draw) == VersionNumber(2))
            .count();
        assert_eq!(second, 100);
        assert_eq!(Alias::to(VersionNumber(3)).choose(7), VersionNumber(3));
    }

    #[test]
    fn selectors_read_as_they_print() {
        for text in ["live", "latest", "7", "canary"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
        assert!("Ca nary".parse::<Selector>().is_err());
    }
}
