//! STATUS: whether an ADD would work.

use std::time::Duration;

use mesh_core::RefusalKind;

use crate::{call::Args, config::Document, failure::Failure, http::Error, meshd::Meshd};

/// All of a STATUS. meshd gives its managers 2 s.
const TIME: Duration = Duration::from_secs(10);

/// Looks.
///
/// # Errors
/// 51 when meshd does not answer: containers keep their connections then, but not their names. 50
/// when it does, and could attach nothing.
pub fn status(document: Document) -> Result<(), Failure> {
    let config = document.config(&Args::default())?;
    let meshd = Meshd::new(&config.head.socket, TIME);
    let status = meshd.status().map_err(|e| Failure::NotAvailableLimited(e.to_string()))?;
    let not = |why: &str| Err(Failure::NotAvailable(why.to_owned()));
    if status.node.is_none() {
        return not("this host belongs to no cluster: run meshctl init or meshctl join first");
    }
    if status.manager.and_then(|m| m.leader).is_none() {
        return not("no manager leads the cluster: attached containers go on, but none can be added");
    }
    for name in &config.networks {
        match meshd.network(name) {
            // Of a family that a network has, every container gets an address.
            Ok(network) => {
                if let Some(full) = network.subnets.iter().find(|s| s.free == 0) {
                    return not(&format!("network {name} has no free address in {}", full.subnet));
                }
            }
            Err(Error::Refused(r)) if r.kind == RefusalKind::NotFound => return not(&r.message),
            Err(e) => return not(&e.to_string()),
        }
    }
    Ok(())
}
