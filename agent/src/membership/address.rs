//! What a host says of itself when it asks to be taken in, and which of its addresses that is.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use mesh_control::join::Joining;
use mesh_core::Refusal;
use mesh_overlay::Overlay;

use super::{Membership, other};
use crate::reconcile::capped;

impl Membership {
    /// This host as it asks to be taken in.
    pub(super) async fn describe(
        &self,
        advertise: Option<IpAddr>,
        data_path: Option<IpAddr>,
        towards: Option<&str>,
    ) -> Result<Joining, Refusal> {
        let addr = match advertise {
            Some(addr) => addr,
            None => self.own_address(towards).await?,
        };
        let data_path_addr = data_path.unwrap_or(addr);
        let overlay = Overlay::new().map_err(other)?;
        for a in [addr, data_path_addr] {
            if a.is_loopback() || a.is_unspecified() || a.is_multicast() {
                return Err(Refusal::malformed(format!(
                    "address {a} is not one that other hosts can reach: give one of an interface"
                )));
            }
        }
        overlay.host_facts(addr).await.map_err(other)?;
        let facts = capped(overlay.host_facts(data_path_addr).await.map_err(other)?);
        Ok(Joining {
            hostname: self.config.hostname.clone(),
            addr,
            control_port: self.config.control_port,
            data_path_addr,
            underlay_mtu: facts.mtu,
            host_routes: facts.routes,
        })
    }

    /// The address of the uplink, or the one that this host would reach the manager (or the world)
    /// from. Asking the kernel for that by connecting a UDP socket sends nothing.
    async fn own_address(&self, towards: Option<&str>) -> Result<IpAddr, Refusal> {
        if let Some(uplink) = &self.config.uplink {
            let all = nix::ifaddrs::getifaddrs().map_err(other)?;
            let on_uplink: Vec<IpAddr> = all
                .filter(|i| i.interface_name == *uplink)
                .filter_map(|i| {
                    let address = i.address?;
                    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
                })
                .filter(|ip| !matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local()))
                .collect();
            // IPv4 where there is some, unless the manager is reached by IPv6.
            let by_ip6 = towards.is_some_and(|t| t.parse::<SocketAddr>().is_ok_and(|a| a.is_ipv6()));
            let wanted = on_uplink.iter().find(|ip| ip.is_ipv6() == by_ip6);
            return wanted
                .or(on_uplink.first())
                .copied()
                .ok_or_else(|| Refusal::other(format!("interface {uplink} has no address: give --advertise-addr")));
        }
        // 192.0.2.1: TEST-NET-1 (RFC 5737), reached by the default route wherever there is one.
        let to = towards.unwrap_or("192.0.2.1:9").to_owned();
        let found = tokio::task::spawn_blocking(move || {
            // Whichever family leads there: a name may have both.
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let socket = match socket.connect(&to) {
                Ok(()) => socket,
                Err(_) => {
                    let socket = UdpSocket::bind("[::]:0")?;
                    socket.connect(&to)?;
                    socket
                }
            };
            socket.local_addr()
        });
        match found.await {
            Ok(Ok(addr)) if !addr.ip().is_loopback() => Ok(addr.ip()),
            _ => Err(Refusal::other(
                "which of this host's addresses others reach is not clear: give --advertise-addr",
            )),
        }
    }
}
