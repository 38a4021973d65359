//! CHECK: compares what the container has with what its ADD's result said.

use std::time::Duration;

use mesh_api::rest::{AttachmentView, InsideView, StateView};

use crate::{
    call::{Args, Call},
    config::Document,
    failure::Failure,
    meshd::Meshd,
    naming::attachment_labels,
    result::{Interface, Outcome},
};

/// All of a CHECK.
const TIME: Duration = Duration::from_secs(10);

/// Looks.
///
/// # Errors
/// 3 when the container is gone, 102 when something is missing, 11 when it may only not be there yet.
pub fn check(call: &Call, document: Document) -> Result<(), Failure> {
    let args = Args::parse(&call.args)?;
    let config = document.config(&args)?;
    let missing = || Failure::Config("prevResult is missing: CHECK compares with the result of ADD".to_owned());
    let prev = config.prev.as_ref().ok_or_else(missing)?;
    let own = attachment_labels(&config.head.name, &call.container, &call.ifname);
    let views = Meshd::new(&config.head.socket, TIME).attachments(&own, true)?;
    if views.len() < config.networks.len() {
        return Err(Failure::Damaged(format!(
            "container {} has {} endpoints of the {} that were made",
            call.container,
            views.len(),
            config.networks.len()
        )));
    }
    views.iter().try_for_each(|view| compare(call, view, prev))
}

fn compare(call: &Call, view: &AttachmentView, prev: &Outcome) -> Result<(), Failure> {
    let ifname = &view.endpoint.ifname;
    let damaged = |what: String| Failure::Damaged(format!("interface {ifname} of container {} {what}", call.container));
    if view.endpoint.state == StateView::Starting {
        return Err(Failure::TryAgain(format!("interface {ifname} is still being attached")));
    }
    let Some(inside) = &view.inside else {
        let why = view.error.as_deref().unwrap_or("it cannot be looked at");
        return Err(Failure::UnknownContainer(format!("{}: {why}", call.container)));
    };
    let is_it = |i: &Interface| i.name == *ifname && i.sandbox.as_deref() == Some(call.netns.as_str());
    let Some(at) = prev.interfaces.iter().position(is_it) else {
        return Err(damaged(format!("in {} is not in prevResult", call.netns)));
    };
    let Some(link) = &inside.link else {
        return Err(damaged("is missing".to_owned()));
    };
    if !link.up {
        return Err(damaged("is down".to_owned()));
    }
    if !link.limit_holds {
        return Err(damaged("sends without the limit that its bandwidth names".to_owned()));
    }
    let said = prev.interfaces[at].mac.as_deref().and_then(|m| m.parse().ok());
    if said.is_some() && said != link.mac {
        let mac = link.mac.map(|m| m.to_string()).unwrap_or_default();
        return Err(damaged(format!("has the ethernet address {mac}, not the one of prevResult")));
    }
    let mut ips = prev.ips.iter().filter(|ip| ip.interface == Some(at));
    if let Some(ip) = ips.find(|ip| !inside.addrs.contains(&ip.address)) {
        return Err(damaged(format!("has lost the address {}", ip.address)));
    }
    routes(view, prev, inside).map_err(damaged)
}

/// The routes that go over this endpoint's gateways. A later plugin may have moved them to another
/// table, which is as good.
fn routes(view: &AttachmentView, prev: &Outcome, inside: &InsideView) -> Result<(), String> {
    let gateways = [view.endpoint.gateway, view.endpoint.gateway6];
    let ours = prev.routes.iter().filter(|r| r.gw.is_some() && gateways.contains(&r.gw));
    for route in ours {
        if !inside.routes.iter().any(|r| r.dst == route.dst && r.gateway == route.gw) {
            return Err(format!("has lost the route to {}", route.dst));
        }
    }
    Ok(())
}
