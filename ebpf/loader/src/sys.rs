//! System calls that no crate in use wraps: what a pinned link is attached to, the memory limit.
#![expect(unsafe_code, reason = "bpf(2) and setrlimit(2) are called directly")]

use std::{
    ffi::CString,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya::{Pod, maps::MapData};
use mesh_ebpf_common::rows::Plain;

/// bpf(2) commands.
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_UPDATE: libc::c_long = 29;
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

fn pinned(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let fd = bpf(
        BPF_OBJ_GET,
        &mut ObjGet {
            pathname: path.as_ptr() as u64,
            ..ObjGet::default()
        },
    )?;
    descriptor(fd)
}

fn descriptor(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program into a pinned link.
pub fn update_link(pin: &Path, program: RawFd) -> io::Result<()> {
    /// `union bpf_attr` for BPF_LINK_UPDATE.
    #[repr(C)]
    struct LinkUpdate {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let link = pinned(pin)?;
    let mut attr = LinkUpdate {
        link_fd: unsigned(link.as_raw_fd())?,
        new_prog_fd: unsigned(program)?,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

fn unsigned(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// `union bpf_attr` for BPF_MAP_*_BATCH.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Reads the next rows of a hash map or an array, as many as fit: how many there were, and from where to
/// go on; `None`: that was the last of them.
pub fn lookup_batch<K: Plain, V: Plain>(
    map: &MapData,
    from: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<u32>)> {
    let room = keys.len().min(values.len());
    batch(map.fd().as_fd(), from, keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64, room)
}

/// As [`lookup_batch`], of any map with a key of 4 bytes or a hash; `keys` and `values` have room for
/// `room` of them.
fn batch(map: BorrowedFd<'_>, from: Option<u32>, keys: u64, values: u64, room: usize) -> io::Result<(usize, Option<u32>)> {
    let (at, mut next) = (from.unwrap_or(0), 0u32);
    let mut attr = Batch {
        in_batch: from.map_or(0, |_| std::ptr::from_ref(&at) as u64),
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys,
        values,
        count: u32::try_from(room).unwrap_or(u32::MAX),
        map_fd: unsigned(map.as_raw_fd())?,
        elem_flags: 0,
        flags: 0,
    };
    let last = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) {
        Ok(_) => false,
        // The end of the table; the rows before it were read.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
        Err(e) => return Err(e),
    };
    Ok((attr.count as usize, (!last).then_some(next)))
}

/// Rows that [`rows`] asks for at once.
const ROWS: usize = 4096;

/// All rows of a hash map, or of an array; `None` where the kernel can not give many at once (before
/// 5.6; ENOTSUPP for some kinds of maps).
pub fn rows<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Option<Vec<(K, V)>>> {
    const ENOTSUPP: i32 = 524;
    let (mut room, mut from, mut out) = (ROWS, None, Vec::new());
    loop {
        let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
        let (count, next) = match batch(map, from, keys.as_mut_ptr() as u64, values.as_mut_ptr() as u64, room) {
            Ok(read) => read,
            // A bucket of the hash has more than that.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < ROWS << 10 => {
                room *= 2;
                continue;
            }
            Err(e) if from.is_none() && matches!(e.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let count = count.min(room);
        // SAFETY: the kernel has written so many of each, and every pattern of bits is a `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        out.extend(keys.into_iter().zip(values));
        if next.is_none() {
            return Ok(Some(out));
        }
        from = next;
    }
}

/// Writes rows of an array.
pub fn update_batch<V: Plain>(map: &MapData, keys: &[u32], values: &[V]) -> io::Result<()> {
    let count = keys.len().min(values.len());
    if count == 0 {
        return Ok(());
    }
    let mut attr = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: u32::try_from(count).unwrap_or(u32::MAX),
        map_fd: unsigned(map.fd().as_fd().as_raw_fd())?,
        elem_flags: 0,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Waits until no program runs any more that runs now: membarrier(2) with MEMBARRIER_CMD_GLOBAL, which
/// is synchronize_rcu in the kernel. Takes some 20 ms.
#[expect(clippy::disallowed_methods, reason = "nothing tells when a program has ended")]
pub fn wait_for_programs() {
    /// MEMBARRIER_CMD_GLOBAL.
    const GLOBAL: libc::c_long = 1;
    // SAFETY: only numbers.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
        // A kernel with nohz_full refuses. A program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// `union bpf_attr` for BPF_MAP_*_ELEM.
#[repr(C)]
struct Elem {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts a row where none is.
pub fn put_new<K: Plain, V: Plain>(map: &MapData, key: &K, value: &V) -> io::Result<()> {
    /// BPF_NOEXIST.
    const NOEXIST: u64 = 1;
    let mut attr = Elem {
        map_fd: unsigned(map.fd().as_fd().as_raw_fd())?,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: NOEXIST,
    };
    match bpf(BPF_MAP_UPDATE_ELEM, &mut attr) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// Removes a row; what is gone is gone.
pub fn delete<K: Plain>(map: &MapData, key: &K) -> io::Result<()> {
    let mut attr = Elem {
        map_fd: unsigned(map.fd().as_fd().as_raw_fd())?,
        pad: 0,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    match bpf(BPF_MAP_DELETE_ELEM, &mut attr) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other.map(drop),
    }
}

/// Nanoseconds since boot, as `bpf_ktime_get_ns` counts them.
pub fn boot_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid struct; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The root of the cgroup v2 hierarchy, by a mount of our own that nobody else sees: where it is mounted
/// for others, if at all, differs and may be hidden.
///
/// Such a mount begins at the root of the cgroup namespace of who makes it, and a container that meshd runs
/// in may have one of its own: then it is the host's mount, which the container is given.
pub fn cgroup_root() -> io::Result<OwnedFd> {
    let own = cgroup_mount();
    if own.as_ref().is_ok_and(is_cgroup_root) {
        return own;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = mounts
        .lines()
        .filter_map(cgroup2_at)
        .filter_map(|at| Some(std::fs::File::open(at).ok()?.into()));
    if let Some(root) = found.find(is_cgroup_root) {
        return Ok(root);
    }
    own.inspect(|_| tracing::warn!("meshd is in a cgroup namespace of its own and is not given the host's /sys/fs/cgroup: only sockets in its own cgroup are balanced when they connect"))
}

/// Whether it is the hierarchy's own root, which always has this inode (kernfs_create_root in fs/kernfs/dir.c).
fn is_cgroup_root(dir: &OwnedFd) -> bool {
    nix::sys::stat::fstat(dir).is_ok_and(|s| s.st_ino == 1)
}

/// Where a line of mountinfo says that cgroup v2 is mounted (proc_pid_mountinfo(5)).
fn cgroup2_at(line: &str) -> Option<&str> {
    let (before, after) = line.split_once(" - ")?;
    (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4))?
}

fn cgroup_mount() -> io::Result<OwnedFd> {
    /// FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC, FSCONFIG_CMD_CREATE.
    const CLOEXEC: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    let call = |ret: libc::c_long| if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) };
    // SAFETY: a string that lives as long as the program.
    let fs = descriptor(call(unsafe { libc::syscall(libc::SYS_fsopen, c"cgroup2".as_ptr(), CLOEXEC) })?)?;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: this command takes no key and no value.
    call(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), CREATE, none, none, 0) })?;
    // SAFETY: only numbers.
    descriptor(call(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), CLOEXEC, 0) })?)
}

/// Index of the device that the pinned TCX link is attached to; `None`: the device is gone, or it is
/// no such link.
pub fn tcx_ifindex(pin: &Path) -> io::Result<Option<u32>> {
    let fd = pinned(pin)?;
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
