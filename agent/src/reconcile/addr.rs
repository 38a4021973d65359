//! Which address a host's data path can have when the one that it had is gone.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use mesh_core::objects::{Node, Objects};
use nix::sys::socket::SockaddrStorage;

/// Another address of the same family: the uplink's first usable one, or without a known uplink the
/// one that another node would be reached from.
pub fn instead_of(me: &Node, objects: &Objects, uplink: Option<&str>) -> Option<IpAddr> {
    let usable = |a: &IpAddr| a.is_ipv4() == me.data_path_addr.is_ipv4() && is_usable(*a) && !is_taken(*a, me, objects);
    if let Some(uplink) = uplink {
        let all = nix::ifaddrs::getifaddrs().ok()?;
        return all
            .filter(|i| i.interface_name == uplink)
            .filter_map(|i| ip_of(&i.address?))
            .find(usable);
    }
    let others = objects.nodes.values().filter(|n| n.id != me.id);
    others.filter_map(|n| source_towards(n.data_path_addr)).find(usable)
}

fn ip_of(a: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| a.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

/// Others can reach it: not of this host or this link alone.
fn is_usable(a: IpAddr) -> bool {
    let local = match a {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    !(local || a.is_loopback() || a.is_unspecified() || a.is_multicast())
}

/// It is another node's: the underlay has two hosts with one address, or a virtual one moves about.
fn is_taken(a: IpAddr, me: &Node, objects: &Objects) -> bool {
    objects.nodes.values().any(|n| n.id != me.id && n.data_path_addr == a)
}

/// The address that the kernel would send from. Connecting a UDP socket sends nothing.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match to {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect((to, 9)).ok()?;
    socket.local_addr().ok().map(|a| a.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_reach() {
        for good in ["192.0.2.1", "10.0.0.1", "fd00::1"] {
            assert!(is_usable(good.parse().unwrap()), "{good}");
        }
        for bad in ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "::"] {
            assert!(!is_usable(bad.parse().unwrap()), "{bad}");
        }
    }
}
