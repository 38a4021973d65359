//! A call of a socket (connect, sendmsg, recvmsg, getpeername) as a cgroup hook has it: `struct bpf_sock_addr`.
//!
//! Used by sockets.

use aya_ebpf::{
    bindings::{bpf_sock_addr, sockaddr},
    helpers::generated::{bpf_bind, bpf_get_netns_cookie, bpf_get_socket_cookie},
};
use mesh_ebpf_common::rows::{Addr, Namespace, SocketKey};

use crate::maps::NAMESPACES;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// `struct sockaddr_in`.
#[repr(C)]
struct Sockaddr4 {
    family: u16,
    port: u16,
    addr: u32,
    zero: [u8; 8],
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct Sockaddr6 {
    family: u16,
    port: u16,
    flow: u32,
    addr: Addr,
    scope: u32,
}

/// Four words of a context, one by one, as the verifier wants.
#[inline(always)]
unsafe fn read6(at: *const u32) -> Addr {
    // SAFETY: the caller's.
    unsafe {
        Addr([
            at.read_volatile(),
            at.add(1).read_volatile(),
            at.add(2).read_volatile(),
            at.add(3).read_volatile(),
        ])
    }
}

/// And written.
#[inline(always)]
unsafe fn write6(at: *mut u32, addr: &Addr) {
    // SAFETY: the caller's.
    unsafe {
        at.write_volatile(addr.0[0]);
        at.add(1).write_volatile(addr.0[1]);
        at.add(2).write_volatile(addr.0[2]);
        at.add(3).write_volatile(addr.0[3]);
    }
}

/// The context of one call.
#[derive(Clone, Copy)]
pub struct Call {
    ctx: *mut bpf_sock_addr,
    /// Made by an IPv6 socket.
    pub v6: bool,
}

impl Call {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sock_addr, v6: bool) -> Self {
        Self { ctx, v6 }
    }

    /// The other end's address; an IPv4 one of an IPv6 socket as IPv4.
    #[inline(always)]
    pub fn addr(self) -> Addr {
        // SAFETY: the context is valid for the whole run; so below.
        unsafe {
            if !self.v6 {
                return Addr::v4(core::ptr::read_volatile(&raw const (*self.ctx).user_ip4));
            }
            read6((&raw const (*self.ctx).user_ip6).cast())
        }
    }

    #[inline(always)]
    pub fn port(self) -> u16 {
        // SAFETY: as above. In network byte order, in the low half.
        u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*self.ctx).user_port) } as u16)
    }

    #[inline(always)]
    pub fn proto(self) -> u8 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*self.ctx).protocol) as u8 }
    }

    #[inline(always)]
    pub fn set(self, addr: &Addr, port: u16) {
        // SAFETY: as above.
        unsafe {
            if self.v6 {
                write6((&raw mut (*self.ctx).user_ip6).cast(), addr);
            } else {
                core::ptr::write_volatile(&raw mut (*self.ctx).user_ip4, addr.0[3]);
            }
            core::ptr::write_volatile(&raw mut (*self.ctx).user_port, u32::from(port.to_be()));
        }
    }

    /// What it sends can come from `addr`: the program has chosen that or nothing, and no port before it connects.
    #[inline(always)]
    pub fn can_come_from(self, addr: &Addr, connects: bool) -> bool {
        let (chosen, port) = if connects { self.source() } else { (self.message_source(), 0) };
        let any = chosen.is_none() || chosen.same(&Addr::v4(0));
        any && port == 0 || chosen.same(addr)
    }

    /// What a socket is bound to: the address, and the port.
    #[inline(always)]
    fn source(self) -> (Addr, u32) {
        // SAFETY: as in `addr`; a call has a socket, whose words are read one by one, too.
        unsafe {
            let sk = core::ptr::read_volatile(&raw const (*self.ctx).__bindgen_anon_1.sk);
            let port = core::ptr::read_volatile(&raw const (*sk).src_port);
            if !self.v6 {
                return (Addr::v4(core::ptr::read_volatile(&raw const (*sk).src_ip4)), port);
            }
            (read6((&raw const (*sk).src_ip6).cast()), port)
        }
    }

    /// Where one datagram is to come from.
    #[inline(always)]
    fn message_source(self) -> Addr {
        // SAFETY: as in `addr`.
        unsafe {
            if !self.v6 {
                return Addr::v4(core::ptr::read_volatile(&raw const (*self.ctx).msg_src_ip4));
            }
            read6((&raw const (*self.ctx).msg_src_ip6).cast())
        }
    }

    /// What it sends comes from `addr`.
    #[inline(always)]
    pub fn come_from(self, addr: &Addr, connects: bool) {
        if !connects {
            // SAFETY: as in `addr`.
            unsafe {
                if self.v6 {
                    write6((&raw mut (*self.ctx).msg_src_ip6).cast(), addr);
                } else {
                    core::ptr::write_volatile(&raw mut (*self.ctx).msg_src_ip4, addr.0[3]);
                }
            }
        } else if self.v6 {
            let mut from = Sockaddr6 {
                family: AF_INET6,
                port: 0,
                flow: 0,
                addr: *addr,
                scope: 0,
            };
            let len = size_of::<Sockaddr6>() as i32;
            // SAFETY: the context is valid for the whole run, and the address is as long as is said. It fails where
            // the program has bound the socket to that address already.
            unsafe { bpf_bind(self.ctx, (&raw mut from).cast::<sockaddr>(), len) };
        } else {
            let mut from = Sockaddr4 {
                family: AF_INET,
                port: 0,
                addr: addr.0[3],
                zero: [0; 8],
            };
            let len = size_of::<Sockaddr4>() as i32;
            // SAFETY: as above.
            unsafe { bpf_bind(self.ctx, (&raw mut from).cast::<sockaddr>(), len) };
        }
    }

    #[inline(always)]
    pub fn namespace(self) -> Option<&'static Namespace> {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_netns_cookie(self.ctx.cast()) };
        // SAFETY: rows of this map are replaced as a whole and outlive this run.
        unsafe { NAMESPACES.get(&cookie) }
    }

    /// The namespace, in the place of a client's address.
    #[inline(always)]
    pub fn client(self) -> Addr {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_netns_cookie(self.ctx.cast()) };
        Addr([0, 0, (cookie >> 32) as u32, cookie as u32])
    }

    #[inline(always)]
    pub fn key(self, addr: Addr, port: u16, forward: bool) -> SocketKey {
        SocketKey {
            // SAFETY: as above.
            cookie: unsafe { bpf_get_socket_cookie(self.ctx.cast()) },
            addr,
            port,
            proto: self.proto(),
            forward: forward.into(),
            zero: [0; 4],
        }
    }
}
