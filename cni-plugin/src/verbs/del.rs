//! DEL: detaches. It succeeds whatever is missing: the namespace, the record, meshd itself. What could
//! not be told to meshd it finds out by itself, when the namespace ends.

use std::time::{Duration, Instant};

use crate::{call::Call, config::Head, failure::Failure, meshd::Meshd, naming::attachment_labels, note, turn};

/// All of a DEL. meshd gives its managers less, and does not wait for the kernel.
const TIME: Duration = Duration::from_secs(20);
/// How long an ADD of the same container may go on: the runtime has given it up.
const TURN_TIME: Duration = Duration::from_secs(3);

/// Detaches.
pub fn del(call: &Call, head: &Head) -> Result<(), Failure> {
    let _turn = turn::take(&head.socket, &call.container, Instant::now() + TURN_TIME);
    let own = attachment_labels(&head.name, &call.container, &call.ifname);
    match Meshd::new(&head.socket, TIME).let_go(own) {
        Ok(reply) if reply.pending.is_empty() => {}
        Ok(reply) => note(&format!(
            "no manager answers: {} will be detached as soon as one does",
            reply.pending.join(", ")
        )),
        Err(e) => note(&format!(
            "meshd was not told, and detaches the container when its namespace ends: {e}"
        )),
    }
    Ok(())
}
