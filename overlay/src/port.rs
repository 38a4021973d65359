//! How a port of a bridge floods, learns and answers for neighbours. Every entry is put by meshd, so
//! no port learns; the VXLAN device floods nothing and has ARP and ND answered on this side of it.

use netlink_packet_route::link::{InfoBridgePort, InfoPortData, InfoPortKind, LinkInfo};

use crate::{
    error::Error,
    link::{self, Device},
    socket::Socket,
};

/// The settings of the VXLAN device's port.
pub(crate) const TUNNEL: &[InfoBridgePort] = &[
    InfoBridgePort::Learning(false),
    InfoBridgePort::UnicastFlood(false),
    InfoBridgePort::MulticastFlood(false),
    InfoBridgePort::BroadcastFlood(false),
    InfoBridgePort::NeighSupress(true),
    InfoBridgePort::Isolated(false),
];

/// The settings of a container's port.
pub(crate) const CONTAINER: &[InfoBridgePort] = &[InfoBridgePort::Learning(false), InfoBridgePort::Isolated(false)];

/// True when the link is a port with all these settings.
pub(crate) fn is_settled(device: &Device, settings: &[InfoBridgePort]) -> bool {
    device.master.is_some() && settings.iter().all(|s| device.port.contains(s))
}

/// Makes the settings of a port so. The link must be in its bridge already.
pub(crate) async fn settle(socket: &Socket, device: &Device, settings: &[InfoBridgePort]) -> Result<(), Error> {
    if is_settled(device, settings) {
        return Ok(());
    }
    let info = vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(settings.to_vec())),
    ];
    link::set_info(socket, format!("set the bridge port flags of {}", device.name), device.index, info).await
}
