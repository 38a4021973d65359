//! meshd's data path in the kernel: five TC programs. Loaded by ebpf/loader, built by
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
mod direct;
mod from_container;
mod from_network;
mod from_overlay;
mod from_uplink;
mod maps;
mod nat;
mod parse;
mod route;
mod skb;
mod to_container;
mod work;

use aya_ebpf::{macros::classifier, programs::TcContext};

use skb::Skb;

/// TC ingress of the uplink.
#[classifier]
pub fn from_uplink(ctx: TcContext) -> i32 {
    from_uplink::run(Skb::new(ctx.skb.skb))
}

/// TC ingress of the ingress VXLAN device.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    from_overlay::run(Skb::new(ctx.skb.skb))
}

/// TC ingress of a network's VXLAN device.
#[classifier]
pub fn from_network(ctx: TcContext) -> i32 {
    from_network::run(Skb::new(ctx.skb.skb))
}

/// TC ingress of an endpoint's host-side veth: what the container sends.
#[classifier]
pub fn from_container(ctx: TcContext) -> i32 {
    from_container::run(Skb::new(ctx.skb.skb))
}

/// TC egress of an endpoint's host-side veth: what the container gets over the bridge.
#[classifier]
pub fn to_container(ctx: TcContext) -> i32 {
    to_container::run(Skb::new(ctx.skb.skb))
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
