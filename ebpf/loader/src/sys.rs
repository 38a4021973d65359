//! System calls that no crate in use wraps: what a pinned link is attached to, the memory limit.
#![expect(unsafe_code, reason = "bpf(2) and setrlimit(2) are called directly")]

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// bpf(2) commands.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `enum bpf_link_type`.
const BPF_LINK_TYPE_TCX: u32 = 11;

/// `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// `union bpf_attr` for BPF_OBJ_GET_INFO_BY_FD.
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// `struct bpf_link_info`, as far as TCX fills it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
    rest: [u64; 8],
}

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is the part of union bpf_attr that the command reads, and its size goes with it.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), mem::size_of::<T>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// Index of the device that the pinned TCX link is attached to; `None`: the device is gone, or it is
/// no such link.
pub fn tcx_ifindex(pin: &Path) -> io::Result<Option<u32>> {
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let fd = bpf(
        BPF_OBJ_GET,
        &mut ObjGet {
            pathname: path.as_ptr() as u64,
            ..ObjGet::default()
        },
    )?;
    let fd = i32::try_from(fd).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let mut attr = InfoByFd {
        bpf_fd: u32::try_from(fd.as_raw_fd()).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?,
        info_len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok((info.kind == BPF_LINK_TYPE_TCX && info.ifindex != 0).then_some(info.ifindex))
}

/// Kernels before 5.11 charge maps to RLIMIT_MEMLOCK; later ones ignore it. Best effort.
pub fn raise_memlock() {
    let unlimited = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a valid struct.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited) } != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "can not raise RLIMIT_MEMLOCK");
    }
}

/// Index of the device of this name, now.
pub fn ifindex(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Name of the device of this index, now.
pub fn ifname(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok()?.into_string().ok()
}

/// `struct tcmsg` behind a netlink header, with the one attribute that names the classifier.
#[repr(C)]
struct GetFilter {
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    pid: u32,
    family: u32,
    ifindex: i32,
    handle: u32,
    parent: u32,
    info: u32,
    attr_len: u16,
    attr_kind: u16,
    name: [u8; 4],
}

/// TC_H_CLSACT with TC_H_MIN_INGRESS and TC_H_MIN_EGRESS.
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;

/// True if the device has our clsact filter: RTM_GETTFILTER for exactly that one.
pub fn has_filter(ifindex: u32, egress: bool, priority: u16, handle: u32) -> io::Result<bool> {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )?;
    let request = GetFilter {
        len: size_of::<GetFilter>() as u32,
        kind: libc::RTM_GETTFILTER,
        flags: (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16,
        seq: 1,
        pid: 0,
        family: 0,
        ifindex: i32::try_from(ifindex).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?,
        handle,
        parent: if egress { CLSACT_EGRESS } else { CLSACT_INGRESS },
        // The protocol, ETH_P_ALL, is in network byte order.
        info: (u32::from(priority) << 16) | u32::from(u16::to_be(libc::ETH_P_ALL as u16)),
        attr_len: 8,
        attr_kind: TCA_KIND,
        name: *b"bpf\0",
    };
    // SAFETY: a `repr(C)` struct of integers without padding.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(&request).cast::<u8>(), size_of::<GetFilter>()) };
    send(fd.as_raw_fd(), bytes, MsgFlags::empty())?;
    let mut answer = [0u8; 8192];
    let len = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    let field = |at: usize| {
        answer
            .get(at..at + 4)
            .filter(|_| at + 4 <= len)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
    };
    let kind = field(4).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "short netlink answer"))? & 0xffff;
    if kind == libc::RTM_NEWTFILTER.into() {
        return Ok(true);
    }
    // NLMSG_ERROR: no such device, qdisc, priority or handle all mean that it is not there.
    match field(16).map(|e| (e as i32).wrapping_neg()) {
        Some(libc::ENOENT | libc::ENODEV | libc::EINVAL) => Ok(false),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "short netlink answer")),
    }
}
