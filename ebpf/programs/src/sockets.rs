//! cgroup hooks of sockets: what connects to a VIP is given its backend once, and then costs nothing
//! more per packet.
//!
//! The hooks see every socket of the machine and tell namespaces apart by their cookie. In a container
//! they balance TCP to VIPs; UDP stays with from_container, where a socket that never connects again
//! moves to a live backend. In the host's own namespace, where no program sees the packets, they
//! balance TCP and UDP to the published ports at the node's addresses and at localhost: a backend here
//! is given directly, one of another node as that node's address in the ingress network, whose
//! from_overlay chooses among its backends.

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use mesh_ebpf_common::{
    Reason,
    rows::{Addr, Backend, FlowKey, LOCAL, Namespace, Service, Socket, SocketKey, TCP, UDP, V6},
};

use crate::{
    maps::{BACKENDS, NAMESPACES, NODE_ADDRS, SERVICES, SOCKETS, VIPS, count, count_flow, published, stat_row},
    route::{Choice, choose},
    skb::now,
};

/// The call goes on, with what is in the context now.
const PROCEED: i32 = 1;
/// It fails, with the error that was set.
const REFUSE: i32 = 0;
/// -ECONNREFUSED.
const ECONNREFUSED: i32 = -111;
/// BPF_ANY.
const ANY: u64 = 0;

/// The context of one call.
#[derive(Clone, Copy)]
pub struct Call {
    ctx: *mut bpf_sock_addr,
    v6: bool,
}

impl Call {
    #[inline(always)]
    pub fn new(ctx: *mut bpf_sock_addr, v6: bool) -> Self {
        Self { ctx, v6 }
    }

    /// The other end's address; an IPv4 one of an IPv6 socket as IPv4.
    #[inline(always)]
    fn addr(self) -> Addr {
        // SAFETY: the context is valid for the whole run; so below. Its words are read one by one, as the
        // verifier wants.
        unsafe {
            if !self.v6 {
                return Addr::v4(core::ptr::read_volatile(&raw const (*self.ctx).user_ip4));
            }
            let word = |i: usize| core::ptr::read_volatile((&raw const (*self.ctx).user_ip6).cast::<u32>().add(i));
            Addr([word(0), word(1), word(2), word(3)])
        }
    }

    #[inline(always)]
    fn port(self) -> u16 {
        // SAFETY: as above. In network byte order, in the low half.
        u16::from_be(unsafe { core::ptr::read_volatile(&raw const (*self.ctx).user_port) } as u16)
    }

    #[inline(always)]
    fn proto(self) -> u8 {
        // SAFETY: as above.
        unsafe { core::ptr::read_volatile(&raw const (*self.ctx).protocol) as u8 }
    }

    #[inline(always)]
    fn set(self, addr: &Addr, port: u16) {
        // SAFETY: as above.
        unsafe {
            if self.v6 {
                let at = (&raw mut (*self.ctx).user_ip6).cast::<u32>();
                core::ptr::write_volatile(at, addr.0[0]);
                core::ptr::write_volatile(at.add(1), addr.0[1]);
                core::ptr::write_volatile(at.add(2), addr.0[2]);
                core::ptr::write_volatile(at.add(3), addr.0[3]);
            } else {
                core::ptr::write_volatile(&raw mut (*self.ctx).user_ip4, addr.0[3]);
            }
            core::ptr::write_volatile(&raw mut (*self.ctx).user_port, u32::from(port.to_be()));
        }
    }

    #[inline(always)]
    fn namespace(self) -> Option<&'static Namespace> {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_netns_cookie(self.ctx.cast()) };
        // SAFETY: rows of this map are replaced as a whole and outlive this run.
        unsafe { NAMESPACES.get(&cookie) }
    }

    /// The namespace, in the place of a client's address.
    #[inline(always)]
    fn client(self) -> Addr {
        // SAFETY: as above.
        let cookie = unsafe { bpf_get_netns_cookie(self.ctx.cast()) };
        Addr([0, 0, (cookie >> 32) as u32, cookie as u32])
    }

    #[inline(always)]
    fn key(self, addr: Addr, port: u16, forward: bool) -> SocketKey {
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

/// What a socket asks for.
struct Asked {
    /// Set of backends.
    service: u32,
    /// Port at the backend.
    target: u16,
    /// A published port, which other nodes answer at their own address.
    published: bool,
}

#[inline(always)]
fn asked(call: Call, ns: &Namespace, addr: &Addr, port: u16) -> Option<Asked> {
    // SAFETY: rows of this map are replaced as a whole and outlive this run.
    if let Some(vip) = unsafe { VIPS.get(addr) } {
        let mut reached = false;
        for network in ns.networks {
            reached |= network == vip.network;
        }
        return reached.then_some(Asked {
            service: vip.service,
            target: port,
            published: false,
        });
    }
    if ns.host == 0 {
        return None;
    }
    let any = addr.is_none() || addr.same(&Addr::v4(0));
    if !any && !addr.is_loopback() && NODE_ADDRS.get_ptr(addr).is_none() {
        return None;
    }
    let found = published(addr, port, call.proto())?;
    // An IPv6 socket reaches backends of either family. Those of IPv6 only are reached where they are: a node has
    // no IPv6 address in the ingress network that another's could be asked at.
    let mut service = found.service;
    if call.v6 && !addr.is_v4() && is_empty(service) {
        service |= V6 | LOCAL;
    }
    Some(Asked {
        service,
        target: found.target,
        published: true,
    })
}

/// The set has no backend.
#[inline(always)]
fn is_empty(set: u32) -> bool {
    // SAFETY: as in `asked`.
    unsafe { SERVICES.get(&set) }.is_none_or(|list| list.count == 0)
}

/// Where a socket that asks for `want` is sent: the backend, the address and the port.
#[inline(always)]
fn give(backend: &Backend, v6: bool, want: &Asked, port: u16) -> Option<(Addr, u16)> {
    if want.published && backend.local != 1 {
        return (backend.node != 0).then(|| (Addr::v4(backend.node), port));
    }
    let v4 = if backend.ip4 == 0 { None } else { Some(Addr::v4(backend.ip4)) };
    let six = if backend.ip6.is_none() { None } else { Some(backend.ip6) };
    let family6 = want.service & V6 != 0;
    // An IPv6 socket can be sent to an IPv4 address, mapped; not the other way round.
    let addr = if family6 { six } else { v4 };
    addr.filter(|a| v6 || a.is_v4()).map(|a| (a, want.target))
}

/// connect, and sendmsg of a socket that is not connected.
#[inline(always)]
pub fn out(call: Call, connects: bool) -> i32 {
    let Some(ns) = call.namespace() else { return PROCEED };
    let proto = call.proto();
    if proto != TCP && !(proto == UDP && ns.host == 1) {
        return PROCEED;
    }
    let (addr, port) = (call.addr(), call.port());
    let Some(want) = asked(call, ns, &addr, port) else { return PROCEED };
    let now = now();
    if proto == UDP {
        // Datagrams to one service stay with one backend while it is there.
        // SAFETY: a copy of a row looked up in this run.
        if let Some(row) = unsafe { SOCKETS.get(&call.key(addr, port, true)) }.copied()
            // SAFETY: as in `asked`.
            && unsafe { BACKENDS.get(&row.backend) }.is_some_and(|b| b.accepting == 1)
        {
            call.set(&row.addr, row.port);
            count(Reason::SocketSent);
            return PROCEED;
        }
    }
    let key = FlowKey {
        // The namespace is the client.
        src: call.client(),
        dst: addr,
        // Nobody knows the port yet: the time stands for it, so that flows differ.
        sport: now as u16,
        dport: port,
        proto,
        zero: [0; 3],
    };
    let Choice::Backend(slot, backend) = choose(want.service, &key, None, true, now, &mut Service::default()) else {
        // A container's packet is answered by from_container.
        if ns.host == 0 || !connects {
            return PROCEED;
        }
        count(Reason::SocketRefused);
        // SAFETY: only a number.
        unsafe { bpf_set_retval(ECONNREFUSED) };
        return REFUSE;
    };
    let Some((to, to_port)) = give(backend, call.v6, &want, port) else {
        return PROCEED;
    };
    // The kernel takes an IPv4 address for a socket that connects only (udpv6_sendmsg of net/ipv6/udp.c).
    if !connects && call.v6 && to.is_v4() {
        return PROCEED;
    }
    let origin = Socket {
        addr,
        backend: slot,
        port,
        zero: [0; 2],
    };
    // Without it a program that asks for its peer is told the backend, which is true, too.
    let _ = SOCKETS.insert(call.key(to, to_port, false), &origin, ANY);
    if proto == UDP {
        let given = Socket {
            addr: to,
            backend: slot,
            port: to_port,
            zero: [0; 2],
        };
        let _ = SOCKETS.insert(call.key(addr, port, true), &given, ANY);
    }
    call.set(&to, to_port);
    count_flow(stat_row(want.service, slot));
    count(if connects { Reason::SocketConnected } else { Reason::SocketSent });
    PROCEED
}

/// recvmsg and getpeername: the other end is shown as what was asked for.
#[inline(always)]
pub fn back(call: Call) -> i32 {
    if call.namespace().is_none() {
        return PROCEED;
    }
    let key = call.key(call.addr(), call.port(), false);
    // SAFETY: a copy of a row looked up in this run.
    if let Some(origin) = unsafe { SOCKETS.get(&key) }.copied() {
        call.set(&origin.addr, origin.port);
    }
    PROCEED
}
