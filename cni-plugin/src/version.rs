//! The versions of the CNI specification that are spoken.

use serde_json::{Value, json};

/// A version of the specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.1
    V031,
    /// 0.4.0: CHECK
    V040,
    /// 1.0.0: addresses no longer name their family
    V100,
    /// 1.1.0: GC, STATUS, MTU in results
    V110,
}

impl Version {
    /// All, oldest first.
    pub const ALL: [Self; 4] = [Self::V031, Self::V040, Self::V100, Self::V110];
    /// What an answer is in where the caller's version is not known.
    pub const NEWEST: Self = Self::V110;

    /// As in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// `None` for one that is not spoken.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

/// The answer of VERSION.
pub fn document(asked: Option<Version>) -> Value {
    let all = Version::ALL.map(Version::as_str);
    json!({"cniVersion": asked.unwrap_or(Version::NEWEST).as_str(), "supportedVersions": all})
}
