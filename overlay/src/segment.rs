//! Sends a packet to a neighbour of the segment past routes and neighbour tables, as the kernel programs send
//! what is not encapsulated: to find out whether such a packet gets there. Called by the agent.

#![expect(unsafe_code, reason = "nix makes no address of a packet socket")]

use std::{
    io, mem,
    net::Ipv4Addr,
    os::fd::{AsRawFd, OwnedFd},
};

use mesh_core::Mac;
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// ETH_P_IP.
const IPV4: u16 = 0x0800;
/// IPPROTO_ICMP.
const ICMP: u8 = 1;

/// A packet socket (packet(7)) that takes in nothing.
#[derive(Debug)]
pub struct Segment(OwnedFd);

impl Segment {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // Of no protocol, so that it gets none of the device's packets.
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
        Ok(Self(fd))
    }

    /// Sends an ICMP message out of the device `dev`, in an IPv4 packet between `source` and `target` and a frame to
    /// `to` from `from`.
    ///
    /// # Errors
    /// When the device is gone, or its queue is full.
    pub fn send(&self, dev: &str, (to, from): (Mac, Mac), (source, target): (Ipv4Addr, Ipv4Addr), icmp: &[u8]) -> io::Result<()> {
        let mut frame = Vec::with_capacity(34 + icmp.len());
        frame.extend(to.0);
        frame.extend(from.0);
        frame.extend(IPV4.to_be_bytes());
        frame.extend(header(source, target, icmp.len()));
        frame.extend(icmp);
        // SAFETY: a C structure of integers, for which zero is valid.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = IPV4.to_be();
        address.sll_ifindex = if_nametoindex(dev)? as i32;
        // SAFETY: both live until the call returns, and their lengths are theirs.
        let sent = unsafe {
            let address = (&raw const address).cast();
            let len = mem::size_of::<libc::sockaddr_ll>() as u32;
            libc::sendto(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, address, len)
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// An IPv4 header (RFC 791 section 3.1) before `len` bytes of ICMP.
fn header(source: Ipv4Addr, target: Ipv4Addr, len: usize) -> [u8; 20] {
    let mut ip = [0; 20];
    (ip[0], ip[8], ip[9]) = (0x45, 64, ICMP);
    ip[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&source.octets());
    ip[16..20].copy_from_slice(&target.octets());
    let sum: u32 = ip.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headers_sum_is_right() {
        let ip = header([10, 0, 0, 2].into(), [255, 255, 255, 255].into(), 16);
        let sum: u32 = ip.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        assert_eq!(ip[3], 36);
    }
}
