//! The generation of a namespace's ruleset: the kernel counts every transaction of nftables, whosoever.
//!
//! [`super::Filter`] asks before it lists its table with `nft`, which takes a process and some 3 ms:
//! while the number is the same, so is the table. Format: include/uapi/linux/netfilter/nf_tables.h,
//! NFT_MSG_GETGEN.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// NFNL_SUBSYS_NFTABLES in the upper byte of a message's type.
const NFTABLES: u16 = 10 << 8;
const NEWGEN: u16 = NFTABLES | 15;
const GETGEN: u16 = NFTABLES | 16;
/// NFTA_GEN_ID.
const ID: u16 = 1;
/// A netlink header, and nfgenmsg behind it.
const HEADERS: usize = 16 + 4;

/// A socket to ask with, in the namespace of the thread that opens it.
#[derive(Debug)]
pub(super) struct Generation(OwnedFd);

impl Generation {
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        Ok(Self(socket))
    }

    /// The number now. The kernel answers within the call: nothing is waited for.
    pub(super) fn get(&self) -> io::Result<u32> {
        let mut request = Vec::with_capacity(HEADERS);
        request.extend_from_slice(&(HEADERS as u32).to_ne_bytes());
        request.extend_from_slice(&GETGEN.to_ne_bytes());
        request.extend_from_slice(&(libc::NLM_F_REQUEST as u16).to_ne_bytes());
        // Sequence and port; then AF_UNSPEC, version 0, resource 0.
        request.extend_from_slice(&[0; 12]);
        send(self.0.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
        read(answer.get(..len).unwrap_or_default())
    }
}

/// The number in an answer.
fn read(answer: &[u8]) -> io::Result<u32> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, "not a generation of nftables");
    let at = |from: usize| answer.get(from..from + 2).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    if at(4) != Some(NEWGEN) {
        return Err(wrong());
    }
    let mut attr = HEADERS;
    while let (Some(len), Some(kind)) = (at(attr), at(attr + 2)) {
        if kind == ID {
            let id = answer.get(attr + 4..attr + 8).and_then(|b| b.try_into().ok());
            return id.map(u32::from_be_bytes).ok_or_else(wrong);
        }
        // Attributes are aligned to 4 bytes; one shorter than its header would never end.
        attr += usize::from(len).max(4).next_multiple_of(4);
    }
    Err(wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let mut fine = vec![0; HEADERS];
        fine[4..6].copy_from_slice(&NEWGEN.to_ne_bytes());
        let attr = |kind: u16, value: &[u8]| {
            let mut attr = (4 + value.len() as u16).to_ne_bytes().to_vec();
            attr.extend_from_slice(&kind.to_ne_bytes());
            attr.extend_from_slice(value);
            attr.resize(attr.len().next_multiple_of(4), 0);
            attr
        };
        fine.extend(attr(9, b"x"));
        fine.extend(attr(ID, &[0, 0, 1, 2]));
        assert_eq!(read(&fine).unwrap(), 258);
        for len in 0..fine.len() {
            assert!(read(&fine[..len]).is_err(), "{len}");
        }
        fine[4] ^= 1;
        assert!(read(&fine).is_err());
        let mut endless = vec![0; 64];
        endless[4..6].copy_from_slice(&NEWGEN.to_ne_bytes());
        assert!(read(&endless).is_err());
    }
}
