//! Bridges: one per network, with the anycast gateway's Ethernet address. No spanning tree, no
//! forward delay, no multicast snooping: the topology is known and static.

use mesh_core::Mac;
use netlink_packet_route::link::{BridgeStpState, InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo};

use crate::{
    error::Error,
    link::{self, Device},
    socket::Socket,
    sysctl::Sysctl,
};

/// What a bridge must be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    pub(crate) mac: Mac,
    pub(crate) mtu: u32,
    pub(crate) ipv6: bool,
}

fn settings() -> [InfoBridge; 3] {
    [
        InfoBridge::StpState(BridgeStpState::Disabled),
        InfoBridge::ForwardDelay(0),
        InfoBridge::MulticastSnooping(false),
    ]
}

fn info(settings: &[InfoBridge]) -> Vec<LinkInfo> {
    vec![
        LinkInfo::Kind(InfoKind::Bridge),
        LinkInfo::Data(InfoData::Bridge(settings.to_vec())),
    ]
}

/// Whether an existing bridge has the settings. One that the kernel does not show was compiled out.
pub(crate) fn is_settled(device: &Device) -> bool {
    let same_key = std::mem::discriminant;
    settings()
        .iter()
        .all(|want| device.bridge.iter().all(|seen| same_key(seen) != same_key(want) || seen == want))
}

/// Makes the bridge, or puts an existing one right.
pub(crate) async fn put(socket: &Socket, sysctl: &Sysctl, name: &str, mark: String, want: &Bridge) -> Result<(), Error> {
    let mut found = link::find_ours(socket, name).await?;
    if let Some(old) = found.take_if(|d| d.alias != mark || d.kind != Some(InfoKind::Bridge)) {
        link::remove(socket, &old).await?;
    }
    let device = match found {
        Some(device) => device,
        None => {
            let attributes = vec![
                LinkAttribute::Address(want.mac.0.to_vec()),
                LinkAttribute::LinkInfo(info(&settings())),
            ];
            link::create(socket, "bridge", name, attributes).await?;
            link::ours(socket, name, || format!("configure bridge {name}")).await?
        }
    };
    if !is_settled(&device) {
        // One by one: the kernel looks at the forward delay first, and takes none of 0 with spanning tree on.
        for setting in settings() {
            link::set_info(socket, format!("configure bridge {name}"), device.index, info(&[setting])).await?;
        }
    }
    // Set and not given at creation: only then does the kernel keep it when ports come and go.
    link::adjust(socket, &device, want.mtu, None, Some(want.mac)).await?;
    sysctl.ipv6(name, want.ipv6).await?;
    sysctl.forwarding().await?;
    link::set_up(socket, &device).await?;
    link::mark(socket, &device, mark).await
}
