//! Identifiers as newtypes: a value of one of these types has been checked.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why a text is no valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text breaks the naming rule.
    #[error("'{text}' is not a valid {what}: {rule}")]
    Invalid {
        /// Which kind of identifier was expected.
        what: &'static str,
        /// What was given.
        text: String,
        /// The rule it breaks, in words.
        rule: &'static str,
    },
}

const NAME_RULE: &str =
    "use 1 to 63 of a-z, 0-9 and '-', starting with a letter and not ending with '-'";

/// The naming rule shared by functions and aliases: an RFC 1123 label that starts with a letter, so that a name
/// can never be mistaken for a version number.
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes.first().is_some_and(u8::is_ascii_lowercase)
        && bytes.last() != Some(&b'-')
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                if is_label(text) {
                    Ok(Self(text.into()))
                } else {
                    let text = text.chars().take(80).collect();
                    Err(IdError::Invalid { what: $what, text, rule: NAME_RULE })
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

label!(
    /// The name callers invoke a function by.
    FunctionName,
    "function name"
);
label!(
    /// A movable name for a version of one function.
    AliasName,
    "alias name"
);

/// The number of a version: 1 for the first one deployed, then counting up, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionNumber(pub u32);

impl fmt::Display for VersionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The SHA-256 of an artifact's bytes; its text form is 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The digest of everything that `reader` still has. Blocks as the reader does.
    pub fn of_reader(reader: &mut impl std::io::Read) -> std::io::Result<Self> {
        use sha2::Digest as _;
        let mut hasher = sha2::Sha256::new();
        let mut buffer = vec![0; 1 << 17];
        loop {
            let count = reader.read(&mut buffer)?;
            match buffer.get(..count) {
                Some(read) if count > 0 => hasher.update(read),
                _ => return Ok(Self(hasher.finalize().into())),
            }
        }
    }

    /// A digest computed elsewhere, for instance over a stream.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let invalid = || IdError::Invalid {
            what: "digest",
            text: text.chars().take(80).collect(),
            rule: "use the 64 lower-case hexadecimal digits of a SHA-256",
        };
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(invalid());
        }
        let nibble = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(invalid()),
        };
        let mut out = [0u8; 32];
        for (slot, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
            if let [high, low] = pair {
                *slot = nibble(*high)? << 4 | nibble(*low)?;
            }
        }
        Ok(Self(out))
    }
}

impl TryFrom<String> for Digest {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Names one request in responses, logs and errors: what the caller sent in `X-Request-Id`, or one made here.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(Arc<str>);

static NEXT_REQUEST: AtomicU64 = AtomicU64::new(0);

/// A number that nobody outside can foresee or choose, spread over all 64 bits and never drawn twice in a process.
pub fn next_draw(seed: u64) -> u64 {
    let count = NEXT_REQUEST.fetch_add(1, Ordering::Relaxed);
    // splitmix64's finaliser: spreads consecutive counters over all bits, and is a bijection, so no two collide.
    let mut mixed = count.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl RequestId {
    /// Longest id accepted from a caller, in bytes; a longer one is replaced.
    pub const MAX_LEN: usize = 128;

    /// A new id, unique within the process by its counter and among processes by `seed`, which should be random.
    pub fn generate(seed: u64) -> Self {
        Self(format!("{:016x}", next_draw(seed)).into())
    }

    /// A caller's id, if it is short and plain enough to be repeated in headers and logs.
    pub fn from_caller(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':');
        (!text.is_empty() && text.len() <= Self::MAX_LEN && text.bytes().all(plain))
            .then(|| Self(text.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A number derived from the id, for the weighted choice between an alias's two versions: the same request
    /// always lands on the same version.
    pub fn draw(&self) -> u64 {
        // FNV-1a, 64 bit.
        self.0.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

impl TryFrom<String> for RequestId {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        Self::from_caller(&text).ok_or_else(|| IdError::Invalid {
            what: "request id",
            text: text.chars().take(80).collect(),
            rule: "use 1 to 128 letters, digits, '-', '_', '.' and ':'",
        })
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> String {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one instance for as long as the platform's process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InstanceId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_label_rule() {
        for good in ["a", "fraud", "file-type", "a1-b2"] {
            assert_eq!(good.parse::<FunctionName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in [
            "",
            "1a",
            "-a",
            "a-",
            "A",
            "a_b",
            "a/b",
            "a b",
            "ä",
            long.as_str(),
        ] {
            assert!(
                bad.parse::<FunctionName>().is_err(),
                "{bad:?} must be refused"
            );
        }
    }

    #[test]
    fn digests_round_trip_and_refuse_anything_else() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert_eq!(
            text,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(text.parse::<Digest>().unwrap(), digest);
        assert!(text.to_uppercase().parse::<Digest>().is_err());
        assert!(text[1..].parse::<Digest>().is_err());
        assert!("../../../../etc/passwd".parse::<Digest>().is_err());
    }

    #[test]
    fn request_ids_from_callers_are_kept_only_if_harmless() {
        assert!(RequestId::from_caller("abc-123_x.y:z").is_some());
        for bad in ["", "a b", "a\n", "é", "\"", &"a".repeat(129)] {
            assert!(RequestId::from_caller(bad).is_none(), "{bad:?}");
        }
        assert_ne!(RequestId::generate(1), RequestId::generate(1));
    }
}
