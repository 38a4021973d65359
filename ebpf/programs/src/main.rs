//! meshd's data path in the kernel: five TC programs and the hooks of sockets. Loaded by ebpf/loader, built by
//! scripts/build-ebpf into the object that the loader carries.
//!
//! Every packet is parsed into the per-CPU [`work::Work`], so that the 512 bytes of BPF stack hold
//! only what lives in registers otherwise. Programs do not nest: a redirect takes place after the
//! program has returned.
#![no_std]
#![no_main]
#![expect(
    internal_features,
    reason = "core::sync::atomic has no fetch_add for this target, the intrinsics have"
)]
#![feature(core_intrinsics)]

mod answer;
mod bind;
mod call;
mod direct;
mod event;
mod from_container;
mod from_network;
mod from_overlay;
mod from_uplink;
mod icmp;
mod maps;
mod nat;
mod parse;
mod quick;
mod route;
mod skb;
mod sockets;
mod to_container;
mod work;

use core::ffi::c_void;

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use call::Call;
use skb::Skb;

// TC programs do without the attribute of aya, which would give them a `__sk_buff`: see skb::Skb.

/// TC ingress of the uplink.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
pub fn from_uplink(context: *mut c_void) -> i32 {
    from_uplink::run(Skb::new(context))
}

/// TC ingress of the ingress VXLAN device.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
pub fn from_overlay(context: *mut c_void) -> i32 {
    from_overlay::run(Skb::new(context))
}

/// TC ingress of a network's VXLAN device.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
pub fn from_network(context: *mut c_void) -> i32 {
    from_network::run(Skb::new(context))
}

/// TC ingress of an endpoint's host-side veth: what the container sends.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
pub fn from_container(context: *mut c_void) -> i32 {
    from_container::run(Skb::new(context))
}

/// TC egress of an endpoint's host-side veth: what the container gets over the bridge.
#[unsafe(link_section = "classifier")]
#[unsafe(no_mangle)]
pub fn to_container(context: *mut c_void) -> i32 {
    to_container::run(Skb::new(context))
}

/// A socket connects, IPv4.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    sockets::out(Call::new(ctx.sock_addr, false), true)
}

/// A socket connects, IPv6.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    sockets::out(Call::new(ctx.sock_addr, true), true)
}

/// A socket that is not connected sends a datagram, IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sockets::out(Call::new(ctx.sock_addr, false), false)
}

/// A socket that is not connected sends a datagram, IPv6.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sockets::out(Call::new(ctx.sock_addr, true), false)
}

/// A socket is told where a datagram came from, IPv4.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    sockets::back(Call::new(ctx.sock_addr, false))
}

/// A socket is told where a datagram came from, IPv6.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    sockets::back(Call::new(ctx.sock_addr, true))
}

/// A socket asks whom it is connected to, IPv4.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    sockets::back(Call::new(ctx.sock_addr, false))
}

/// A socket asks whom it is connected to, IPv6.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    sockets::back(Call::new(ctx.sock_addr, true))
}

// The kernel lends some helpers to GPL-compatible programs only; of the two licences of this crate it
// is told the one that it knows.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 7] = *b"GPL v2\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // No path leads here: the object would not link with the formatting code, nor pass the verifier.
    loop {}
}
