//! Adds forwarding entries and neighbours, many at once.
//!
//! Used by [`crate::Overlay::apply_all`].

use std::collections::HashMap;

use mesh_core::{
    action::NetAction,
    desired::{Fdb, Neigh},
};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;

use crate::{
    Overlay,
    batch::AT_ONCE,
    error::Error,
    fdb,
    known::Known,
    link::{self, Device},
    neigh,
};

/// What is added.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Fdb(&'a Fdb),
    Neigh(&'a Neigh),
}

impl<'a> Entry<'a> {
    fn of(step: &'a NetAction) -> Option<Self> {
        match step {
            NetAction::AddFdb(entry) => Some(Self::Fdb(entry)),
            NetAction::AddNeigh(neigh) => Some(Self::Neigh(neigh)),
            _ => None,
        }
    }

    fn dev(self) -> &'a str {
        match self {
            Self::Fdb(entry) => &entry.dev,
            Self::Neigh(neigh) => &neigh.dev,
        }
    }

    fn message(self, device: &Device) -> RouteNetlinkMessage {
        match self {
            Self::Fdb(entry) => fdb::added(device, entry),
            Self::Neigh(neigh) => neigh::added(device, neigh),
        }
    }

    fn is_there(self, device: &Device, known: &Known) {
        match self {
            Self::Fdb(entry) => known.put(device.index, entry),
            Self::Neigh(neigh) => known.put_neigh(device.index, neigh),
        }
    }

    fn request(self) -> String {
        match self {
            Self::Fdb(entry) => fdb::request(entry),
            Self::Neigh(neigh) => neigh::request(neigh),
        }
    }
}

/// What comes of each of `steps`. `None` where they are not all additions on devices of ours, or where what the
/// kernel did of them is not known: each is to be done by itself then, which says what is wrong.
pub(crate) async fn add(overlay: &Overlay, steps: &[&NetAction]) -> Option<Vec<Result<(), Error>>> {
    let entries: Vec<Entry<'_>> = steps.iter().map(|step| Entry::of(step)).collect::<Option<_>>()?;
    let mut devices: HashMap<&str, Device> = HashMap::new();
    for name in entries.iter().map(|e| e.dev()) {
        if !devices.contains_key(name) {
            let device = link::find_ours(&overlay.socket, name).await.ok()??;
            devices.insert(name, device);
        }
    }
    let entries: Vec<_> = entries.into_iter().filter_map(|e| Some((e, devices.get(e.dev())?))).collect();
    let mut done = Vec::with_capacity(entries.len());
    for entries in entries.chunks(AT_ONCE) {
        let messages = entries.iter().map(|(entry, device)| entry.message(device)).collect();
        let mut refused = overlay.batches.send(messages, NLM_F_CREATE | NLM_F_REPLACE).await.ok()?;
        for (at, (entry, device)) in entries.iter().enumerate() {
            if let Some(source) = refused.remove(&at) {
                let (request, hint) = (entry.request(), None);
                done.push(Err(Error::Kernel { request, hint, source }));
            } else {
                entry.is_there(device, &overlay.socket.known);
                done.push(Ok(()));
            }
        }
    }
    Some(done)
}
