//! GC: detaches what this configuration attached on this host and the runtime no longer knows.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    config::Document,
    failure::Failure,
    meshd::Meshd,
    naming::{attachment_labels, attachment_of, network_labels},
    note,
};

/// All of a GC.
const TIME: Duration = Duration::from_secs(60);

/// Detaches; goes on when something can not be, and tells the first failure.
pub fn gc(document: Document) -> Result<(), Failure> {
    let head = document.head.clone();
    let valid = document.valid_attachments()?;
    let valid: BTreeSet<_> = valid.iter().map(|a| (a.container.as_str(), a.ifname.as_str())).collect();
    let meshd = Meshd::new(&head.socket, TIME);
    let all = meshd.attachments(&network_labels(&head.name), false)?;
    let all: BTreeSet<_> = all.iter().filter_map(|v| attachment_of(&v.endpoint.labels)).collect();
    let mut first = None;
    for (container, ifname) in all.difference(&valid) {
        if let Err(e) = meshd.let_go(attachment_labels(&head.name, container, ifname)) {
            note(&format!("{ifname} of {container} could not be detached: {e}"));
            first.get_or_insert(e);
        }
    }
    first.map_or(Ok(()), |e| Err(e.into()))
}
