//! Why a call fails: the specification's error codes (section 5, "Error"), and from 100 on meshd-cni's
//! own.

use std::{fmt::Write, io};

use mesh_core::{Refusal, RefusalKind};
use serde_json::{Value, json};

use crate::{http, version::Version};

/// A failure of any call.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration is of a version that is not spoken.
    #[error("cniVersion {asked:?} is not supported: use {all}", asked = .0, all = Version::ALL.map(Version::as_str).join(", "))]
    Version(String),
    /// The configuration's version does not know this call.
    #[error("cniVersion {} does not know {verb}: use {since} or later", .version.as_str())]
    VerbVersion {
        /// What was asked for.
        verb: &'static str,
        /// The configuration's version.
        version: Version,
        /// First version that has it.
        since: &'static str,
    },
    /// A key that is not acted upon.
    #[error("field {key} = {value} is not supported: {hint}")]
    UnsupportedField {
        /// Where it is, as a path.
        key: String,
        /// Its value, JSON.
        value: String,
        /// What would be right.
        hint: &'static str,
    },
    /// There is no such container.
    #[error("no container: {0}")]
    UnknownContainer(String),
    /// Variables of the environment are missing or wrong.
    #[error("{0}")]
    Environment(String),
    /// Standard input can not be read.
    #[error("cannot read the configuration from standard input")]
    Input(#[source] io::Error),
    /// Something is not the JSON that belongs there.
    #[error("cannot decode {what}")]
    Decode {
        /// What it is.
        what: &'static str,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// Something is JSON of another shape.
    #[error("cannot decode {0}")]
    Shape(String),
    /// The configuration can not be carried out.
    #[error("{0}")]
    Config(String),
    /// It will pass.
    #[error("{0}")]
    TryAgain(String),
    /// STATUS: nothing can be attached.
    #[error("{0}")]
    NotAvailable(String),
    /// STATUS: nor do all containers work.
    #[error("{0}")]
    NotAvailableLimited(String),
    /// meshd can not be asked.
    #[error(transparent)]
    Meshd(http::Error),
    /// meshd refuses.
    #[error(transparent)]
    Refused(Refusal),
    /// ADD: it is attached.
    #[error("container {container} is attached already as {ifname}: DEL it first")]
    AlreadyAttached {
        /// CNI_CONTAINERID
        container: String,
        /// CNI_IFNAME
        ifname: String,
    },
    /// CHECK: it is not as it was made.
    #[error("{0}")]
    Damaged(String),
}

impl Failure {
    /// The code in the error document.
    pub fn code(&self) -> u32 {
        match self {
            Self::Version(_) | Self::VerbVersion { .. } => 1,
            Self::UnsupportedField { .. } => 2,
            Self::UnknownContainer(_) => 3,
            Self::Environment(_) => 4,
            Self::Input(_) => 5,
            Self::Decode { .. } | Self::Shape(_) => 6,
            Self::Config(_) => 7,
            Self::TryAgain(_) => 11,
            Self::NotAvailable(_) => 50,
            Self::NotAvailableLimited(_) => 51,
            // meshd is being started, or restarted, or it is loaded: that passes.
            Self::Meshd(e) if e.is_transient() => 11,
            Self::Meshd(_) => 5,
            Self::Refused(r) => match r.kind {
                // What it names comes from the configuration.
                RefusalKind::Malformed | RefusalKind::NotFound => 7,
                RefusalKind::Unavailable => 11,
                RefusalKind::Conflict | RefusalKind::Forbidden | RefusalKind::Other => 100,
            },
            Self::AlreadyAttached { .. } => 101,
            Self::Damaged(_) => 102,
        }
    }

    /// The sort of failure, in the specification's words.
    fn summary(&self) -> &'static str {
        match self.code() {
            1 => "incompatible CNI version",
            2 => "unsupported field in network configuration",
            3 => "container unknown or does not exist",
            4 => "invalid necessary environment variables",
            5 => "I/O failure",
            6 => "failed to decode content",
            7 => "invalid network config",
            11 => "try again later",
            50 => "the plugin is not available",
            51 => "the plugin is not available, and containers may have limited connectivity",
            101 => "already attached",
            102 => "the attachment is not as it was made",
            _ => "refused by meshd",
        }
    }

    /// The whole chain in one line.
    pub fn one_line(&self) -> String {
        let mut line = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(source) = next {
            // Writing to a string does not fail.
            let _ = write!(line, ": {source}");
            next = source.source();
        }
        line
    }

    /// The document for standard output. Readers of `msg` alone must find in it what is wrong too.
    pub fn document(&self, version: Version) -> Value {
        let (summary, line) = (self.summary(), self.one_line());
        json!({"cniVersion": version.as_str(), "code": self.code(), "msg": format!("{summary}: {line}"), "details": line})
    }
}

impl From<http::Error> for Failure {
    fn from(e: http::Error) -> Self {
        match e {
            http::Error::Refused(refusal) => Self::Refused(refusal),
            other => Self::Meshd(other),
        }
    }
}
