//! cgroup hooks of sockets: what connects to a VIP is given its backend once, and then costs nothing
//! more per packet.
//!
//! The hooks see every socket of the machine and tell namespaces apart by their cookie. In a container
//! they balance TCP to VIPs; UDP stays with from_container, where a socket that never connects again
//! moves to a live backend. In the host's own namespace, where no program sees the packets, they
//! balance TCP and UDP to the published ports at the node's addresses and at localhost: a backend here
//! is given directly, one of another node as that node's address in the ingress network, whose
//! from_overlay chooses among its backends. Of a port that is bound to an address it learns which one was
//! asked for by the packets' source, which becomes that address, as without the hooks; a program that has chosen
//! another source is given a backend here.

use aya_ebpf::helpers::generated::bpf_set_retval;
use mesh_ebpf_common::{
    Reason,
    rows::{Addr, Backend, FlowKey, LOCAL, Namespace, Service, Socket, TCP, UDP, V6},
};

use crate::{
    call::Call,
    maps::{BACKENDS, NODE_ADDRS, NODES, SERVICES, SOCKETS, VIPS, count, count_flow, is_bound, published, stat_row},
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

/// What a socket asks for.
struct Asked {
    /// Set of backends.
    service: u32,
    /// Port at the backend.
    target: u16,
    /// A published port, which other nodes answer at their own address.
    published: bool,
    /// Published at the address that is asked, and not at others.
    bound: bool,
}

#[inline(always)]
fn asked(call: Call, ns: &Namespace, addr: &Addr, port: u16, connects: bool) -> Option<Asked> {
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
            bound: false,
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
    let bound = is_bound(port, call.proto());
    // An IPv6 socket that connects reaches backends of either family, but not from an IPv6 address; a datagram those
    // of its own only.
    let mut service = found.service;
    if call.v6 && !addr.is_v4() && (bound || !connects || is_empty(service)) {
        service |= V6;
    }
    Some(Asked {
        service,
        target: found.target,
        published: true,
        bound,
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
        if want.service & V6 != 0 {
            // SAFETY: as in `asked`.
            return unsafe { NODES.get(&backend.node) }.map(|node| (*node, port));
        }
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
    let host = ns.host == 1;
    if proto != TCP && !(proto == UDP && host) {
        return PROCEED;
    }
    let (addr, port) = (call.addr(), call.port());
    let Some(mut want) = asked(call, ns, &addr, port, connects) else {
        return PROCEED;
    };
    // Another node tells by the source whose a bound port is.
    if want.bound && !call.can_come_from(&addr, connects) {
        want.service |= LOCAL;
    }
    let now = now();
    if proto == UDP {
        // Datagrams to one service stay with one backend while it is there.
        // SAFETY: a copy of a row looked up in this run.
        if let Some(row) = unsafe { SOCKETS.get(&call.key(addr, port, true)) }.copied()
            // SAFETY: as in `asked`.
            && let Some(backend) = unsafe { BACKENDS.get(&row.backend) }
            && backend.accepting == 1
            && (backend.local == 1 || want.service & LOCAL == 0)
        {
            if want.bound && backend.local != 1 {
                call.come_from(&addr, connects);
            }
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
        if !host || !connects {
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
    if want.bound && backend.local != 1 {
        call.come_from(&addr, connects);
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
