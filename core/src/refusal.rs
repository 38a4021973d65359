//! Why a command is refused: one sentence for the person who asked, and a kind that becomes
//! meshctl's exit code and REST's status.

use serde::{Deserialize, Serialize};

/// What sort of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalKind {
    /// The request can not be right whatever the cluster's state: exit 2, HTTP 400.
    Malformed,
    /// Nothing has that name or id: exit 3, HTTP 404.
    NotFound,
    /// Taken, in use, already done, or changed meanwhile: exit 4, HTTP 409.
    Conflict,
    /// No manager, or no quorum: exit 5, HTTP 503.
    Unavailable,
    /// The caller may not do this: exit 1, HTTP 403.
    Forbidden,
    /// Anything else: exit 1, HTTP 422.
    Other,
}

impl RefusalKind {
    /// meshctl's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Malformed => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unavailable => 5,
            Self::Forbidden | Self::Other => 1,
        }
    }

    /// The HTTP status of the REST interface.
    pub fn http_status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Other => 422,
            Self::Unavailable => 503,
        }
    }
}

/// A request that was refused; nothing was changed by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The sort of refusal.
    pub kind: RefusalKind,
    /// What was wrong, with which value, and what would be right. One line.
    pub message: String,
}

impl Refusal {
    /// A refusal of any kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    /// The request itself is wrong.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Malformed, message)
    }

    /// Nothing has that name.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::NotFound, message)
    }

    /// Taken, in use, or already done.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Conflict, message)
    }

    /// No manager or no quorum.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Unavailable, message)
    }

    /// The caller may not.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Forbidden, message)
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Other, message)
    }
}
