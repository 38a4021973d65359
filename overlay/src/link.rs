//! Links as the kernel shows them, whose they are, and the requests that all kinds share.
//!
//! A link is meshd's when its alias is a mark (`mesh:CLUSTER:OBJECT`). The kernel takes no alias when
//! it makes a link, but it takes a group: so every link is made in [`GROUP`], and the alias follows.
//! A link of that group without an alias is one whose making was cut short; it is ours to remove.

use mesh_core::{Id, Mac, desired};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute,
        LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, State,
    },
};

use crate::{error::Error, queue, socket::Socket};

/// Link group that links are made in: "mesh" in ASCII.
pub(crate) const GROUP: u32 = 0x6d65_7368;
/// Link group of a container's link whose far end has its ways back, where an engine has taken that.
pub(crate) const RETURNS: u32 = GROUP + 1;
/// Link group of a container's interface that meshd itself puts there and configures: what the container has by it goes
/// with it.
pub(crate) const PLACED: u32 = GROUP + 2;
/// First letters of the names of links that meshd makes.
const PREFIXES: [&str; 4] = ["mb-", "mx-", "mv-", WAITING];
/// First letters of the name of a veth's other end that waits for a container engine.
pub(crate) const WAITING: &str = "mc-";

/// One link.
#[derive(Clone, Debug, Default)]
pub(crate) struct Device {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) group: u32,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) up: bool,
    /// The kernel lets packets through (RFC 2863's operational status is up).
    pub(crate) carries: bool,
    pub(crate) mtu: u32,
    pub(crate) mac: Option<Mac>,
    /// Index of the bridge that it is a port of.
    pub(crate) master: Option<u32>,
    /// It has a queue of a kind that meshd gives.
    pub(crate) is_shaped: bool,
    /// Index of a veth's other end, in that one's namespace.
    pub(crate) peer: Option<u32>,
    pub(crate) bridge: Vec<InfoBridge>,
    pub(crate) vxlan: Vec<InfoVxlan>,
    pub(crate) port: Vec<InfoBridgePort>,
    /// The host has IPv6 on it.
    pub(crate) ipv6: bool,
    /// It takes router advertisements, or makes itself a link-local address.
    pub(crate) configures_itself: bool,
}

/// Whose a link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Meshd's: cluster and object of its mark.
    Mesh(Id, Id),
    /// Meshd's, cut short; the object is the one that its name tells, if any.
    HalfMade(Option<Id>),
    /// Somebody else's.
    Other,
}

impl Device {
    pub(crate) fn owner(&self) -> Owner {
        let Some(object) = PREFIXES.iter().find_map(|p| self.name.strip_prefix(p)) else {
            return Owner::Other;
        };
        match desired::read_mark(&self.alias) {
            Some((cluster, object)) => Owner::Mesh(cluster, object),
            None if self.alias.is_empty() && self.group == GROUP => Owner::HalfMade(object.parse().ok()),
            None => Owner::Other,
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.owner() != Owner::Other
    }

    /// IPv6 is off, or on without addresses and routes that meshd did not give.
    pub(crate) fn is_ipv6_settled(&self) -> bool {
        !(self.ipv6 && self.configures_itself)
    }

    fn of(message: LinkMessage) -> Self {
        let mut d = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(v) => d.name = v,
                LinkAttribute::IfAlias(v) => d.alias = v,
                LinkAttribute::Group(v) => d.group = v,
                LinkAttribute::Mtu(v) => d.mtu = v,
                LinkAttribute::OperState(v) => d.carries = v == State::Up,
                LinkAttribute::Address(v) => d.mac = v.try_into().ok().map(Mac),
                LinkAttribute::Controller(v) => d.master = Some(v),
                LinkAttribute::Qdisc(v) => d.is_shaped = v == queue::KIND,
                LinkAttribute::Link(v) => d.peer = Some(v),
                LinkAttribute::LinkInfo(infos) => d.read_info(infos),
                LinkAttribute::AfSpecUnspec(families) => d.read_families(families),
                _ => {}
            }
        }
        d
    }

    fn read_families(&mut self, families: Vec<AfSpecUnspec>) {
        let inet6 = families.into_iter().filter_map(|f| match f {
            AfSpecUnspec::Inet6(v) => Some(v),
            _ => None,
        });
        for attribute in inet6.flatten() {
            match attribute {
                AfSpecInet6::DevConf(conf) => {
                    self.ipv6 = conf.disable_ipv6 == 0;
                    self.configures_itself |= conf.accept_ra != 0;
                }
                AfSpecInet6::AddrGenMode(mode) => self.configures_itself |= mode != In6AddrGenMode::None,
                _ => {}
            }
        }
    }

    fn read_info(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind),
                LinkInfo::Data(InfoData::Bridge(v)) => self.bridge = v,
                LinkInfo::Data(InfoData::Vxlan(v)) => self.vxlan = v,
                LinkInfo::PortData(InfoPortData::BridgePort(v)) => self.port = v,
                _ => {}
            }
        }
    }
}

/// A request about the link of that index.
pub(crate) fn message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut m = LinkMessage::default();
    m.header.index = index;
    m.attributes = attributes;
    m
}

/// Sets the administrative state in a request.
pub(crate) fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

/// All links.
pub(crate) async fn all(socket: &Socket) -> Result<Vec<Device>, Error> {
    let ask = message(0, vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])]);
    let rows = socket.dump("list links", RouteNetlinkMessage::GetLink(ask)).await?;
    Ok(devices(rows).collect())
}

/// The link of that name; `None` when there is none.
pub(crate) async fn find(socket: &Socket, name: &str) -> Result<Option<Device>, Error> {
    check_name(name)?;
    let attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
    ];
    match socket
        .get(format!("read link {name}"), RouteNetlinkMessage::GetLink(message(0, attributes)))
        .await
    {
        Ok(rows) => Ok(devices(rows).next()),
        Err(e) if e.is(&[libc::ENODEV]) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The link of that name, which must be meshd's.
pub(crate) async fn ours(socket: &Socket, name: &str, request: impl FnOnce() -> String) -> Result<Device, Error> {
    match find_ours(socket, name).await? {
        Some(device) => Ok(device),
        None => Err(Error::NoLink {
            request: request(),
            name: name.into(),
        }),
    }
}

/// The link of that name, `None` when there is none; an error when it is not meshd's.
pub(crate) async fn find_ours(socket: &Socket, name: &str) -> Result<Option<Device>, Error> {
    match find(socket, name).await? {
        Some(d) if !d.is_ours() => Err(Error::NotOurs {
            name: d.name,
            alias: d.alias,
        }),
        found => Ok(found),
    }
}

/// Makes a link. `attributes` say of what kind.
pub(crate) async fn create(socket: &Socket, what: &str, name: &str, mut attributes: Vec<LinkAttribute>) -> Result<(), Error> {
    attributes.splice(0..0, [LinkAttribute::IfName(name.into()), LinkAttribute::Group(GROUP)]);
    let new = RouteNetlinkMessage::NewLink(message(0, attributes));
    socket.change(format!("create {what} {name}"), new, NLM_F_CREATE | NLM_F_EXCL).await
}

/// Changes attributes of an existing link.
pub(crate) async fn set(socket: &Socket, request: String, message: LinkMessage) -> Result<(), Error> {
    socket.change(request, RouteNetlinkMessage::SetLink(message), 0).await
}

/// Changes what only the link's kind knows (IFLA_LINKINFO), which RTM_SETLINK ignores.
pub(crate) async fn set_info(socket: &Socket, request: String, index: u32, info: Vec<LinkInfo>) -> Result<(), Error> {
    let new = RouteNetlinkMessage::NewLink(message(index, vec![LinkAttribute::LinkInfo(info)]));
    socket.change(request, new, 0).await
}

/// Gives a link its mark: from here on it is complete.
pub(crate) async fn mark(socket: &Socket, device: &Device, mark: String) -> Result<(), Error> {
    if device.alias == mark {
        return Ok(());
    }
    set(
        socket,
        format!("mark link {}", device.name),
        message(device.index, vec![LinkAttribute::IfAlias(mark)]),
    )
    .await
}

/// Puts a link in a group.
pub(crate) async fn regroup(socket: &Socket, device: &Device, group: u32) -> Result<(), Error> {
    let message = message(device.index, vec![LinkAttribute::Group(group)]);
    set(socket, format!("set the group of {}", device.name), message).await
}

/// Removes a link. One that is gone already is success.
pub(crate) async fn remove(socket: &Socket, device: &Device) -> Result<(), Error> {
    let del = RouteNetlinkMessage::DelLink(message(device.index, Vec::new()));
    match socket.change(format!("remove link {}", device.name), del, 0).await {
        Err(e) if e.is(&[libc::ENODEV]) => {}
        done => done?,
    }
    socket.known.forget(device.index);
    Ok(())
}

/// Puts the MTU, the bridge and the Ethernet address of an existing link right, each if it differs.
pub(crate) async fn adjust(socket: &Socket, device: &Device, mtu: u32, master: Option<u32>, mac: Option<Mac>) -> Result<(), Error> {
    let name = &device.name;
    if device.mtu != mtu {
        set(
            socket,
            format!("set the MTU of {name} to {mtu}"),
            message(device.index, vec![LinkAttribute::Mtu(mtu)]),
        )
        .await?;
    }
    if device.master != master {
        let attributes = vec![LinkAttribute::Controller(master.unwrap_or(0))];
        set(socket, format!("change the bridge of {name}"), message(device.index, attributes)).await?;
    }
    match mac {
        Some(mac) if device.mac != Some(mac) => {
            let attributes = vec![LinkAttribute::Address(mac.0.to_vec())];
            set(
                socket,
                format!("set the ethernet address of {name} to {mac}"),
                message(device.index, attributes),
            )
            .await
        }
        _ => Ok(()),
    }
}

/// Sets a link up.
pub(crate) async fn set_up(socket: &Socket, device: &Device) -> Result<(), Error> {
    if device.up {
        return Ok(());
    }
    set(socket, format!("set {} up", device.name), up(message(device.index, Vec::new()))).await
}

/// Refuses what the kernel would cut off or misread (IFNAMSIZ; dev_valid_name in net/core/dev.c).
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let sound = !matches!(name, "" | "." | "..") && name.len() < libc::IFNAMSIZ;
    if sound && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':') {
        return Ok(());
    }
    Err(Error::Invalid {
        what: "interface name",
        value: name.into(),
        want: "1 to 15 visible ASCII characters without / and :",
    })
}

/// IPv4 or IPv6, as the kernel numbers them.
pub(crate) fn family(ip: std::net::IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn devices(rows: Vec<RouteNetlinkMessage>) -> impl Iterator<Item = Device> {
    rows.into_iter().filter_map(|row| match row {
        RouteNetlinkMessage::NewLink(m) => Some(Device::of(m)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_prefix_and_a_mark_make_a_link_ours() {
        let id = Id::from_bits(7);
        let device = |name: &str, alias: &str, group| Device {
            name: name.into(),
            alias: alias.into(),
            group,
            ..Device::default()
        };
        let mark = desired::mark(id, id);
        assert_eq!(device("mb-000000000007", &mark, 0).owner(), Owner::Mesh(id, id));
        assert_eq!(device("mv-000000000007", "", GROUP).owner(), Owner::HalfMade(Some(id)));
        for (name, alias, group) in [
            ("eth0", mark.as_str(), GROUP),
            ("mb-x", "", 0),
            ("mb-x", "uplink", GROUP),
            ("mb-x", "mesh:", 0),
        ] {
            assert_eq!(device(name, alias, group).owner(), Owner::Other, "{name} {alias}");
        }
    }

    #[test]
    fn names_that_the_kernel_would_refuse() {
        assert!(check_name("mv-0123456789ab").is_ok());
        for bad in ["", ".", "..", "a/b", "a b", "0123456789abcdef", "eth0:1", "a\nb"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
