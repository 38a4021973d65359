//! Refusals on the wire: a gRPC status whose details are the [`Refusal`] as JSON, so that the
//! caller sees the same sentence and kind that the manager decided on.

use mesh_core::{Refusal, RefusalKind};
use tonic::{Code, Status};

/// The status that carries a refusal.
pub fn status_of(refusal: &Refusal) -> Status {
    let code = match refusal.kind {
        RefusalKind::Malformed => Code::InvalidArgument,
        RefusalKind::NotFound => Code::NotFound,
        RefusalKind::Conflict => Code::AlreadyExists,
        RefusalKind::Unavailable => Code::Unavailable,
        RefusalKind::Forbidden => Code::PermissionDenied,
        RefusalKind::Other => Code::FailedPrecondition,
    };
    // Two plain fields always have a JSON form; without it the message alone still arrives.
    let details = serde_json::to_vec(refusal).unwrap_or_default();
    Status::with_details(code, refusal.message.clone(), details.into())
}

/// The refusal that a status carries; `None` for one that did not come from a manager's decision.
pub fn refusal_of(status: &Status) -> Option<Refusal> {
    serde_json::from_slice(status.details()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        for kind in [
            RefusalKind::Malformed,
            RefusalKind::NotFound,
            RefusalKind::Conflict,
            RefusalKind::Unavailable,
            RefusalKind::Forbidden,
            RefusalKind::Other,
        ] {
            let refusal = Refusal::new(kind, "no network named \"x\": see … é");
            assert_eq!(refusal_of(&status_of(&refusal)), Some(refusal));
        }
        assert_eq!(refusal_of(&Status::unavailable("tcp connect error")), None);
    }
}
