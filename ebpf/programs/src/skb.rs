//! The packet, and the kernel helpers that change or send it.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_INVALIDATE_HASH, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT,
        TC_ACT_UNSPEC,
    },
    helpers::generated::{
        bpf_csum_update, bpf_get_prandom_u32, bpf_jiffies64, bpf_ktime_get_ns, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_redirect_peer, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use mesh_ebpf_common::{Reason, header::ETH_LEN, rows::Plain};

use crate::{event, maps::count};

/// Not ours: the next program, or the kernel, decides.
pub const PASS: i32 = TC_ACT_UNSPEC;
/// The packet ends here.
const DROP: i32 = TC_ACT_SHOT as i32;
/// What bpf_redirect and its like return when they have taken note of the target.
const REDIRECT: i64 = 7;
/// PACKET_HOST of if_packet.h.
const PACKET_HOST: u32 = 0;

/// Counts and passes.
#[inline(always)]
pub fn pass(reason: Reason) -> i32 {
    count(reason);
    PASS
}

/// Counts and drops, and tells who watches.
#[inline(never)]
pub fn drop(reason: Reason) -> i32 {
    count(reason);
    event::dropped(reason);
    DROP
}

/// Nanoseconds since boot.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// Ticks of the kernel's clock since it began. The verifier makes one load of the call.
#[inline(always)]
pub fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_jiffies64() }
}

/// A random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_get_prandom_u32() }
}

/// A word's halves as they lie in the packet.
#[repr(C)]
#[derive(Clone, Copy)]
struct Halves(u16, u16);
// SAFETY: integers.
unsafe impl Plain for Halves {}

/// An Ethernet address as it is written.
type Mac = [u16; 3];

/// The packet of this program run: a `__sk_buff`, which no function that stands in BTF may name. Two of its members point
/// at types that BTF only names, and LLVM (BTFDebug.cpp, `FixupDerivedTypes`) writes such names in the order of addresses
/// of its own: another one each time. `names_one_type_only` of the loader looks.
#[derive(Clone, Copy)]
pub struct Skb(*mut c_void);

impl Skb {
    /// `context`: what the kernel calls a TC program with.
    #[inline(always)]
    pub fn new(context: *mut c_void) -> Self {
        Self(context)
    }

    #[inline(always)]
    fn raw(self) -> *mut __sk_buff {
        self.0.cast()
    }

    /// Length of the frame in bytes.
    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: the context is valid for the whole run; so below.
        unsafe { (*self.raw()).len }
    }

    /// The device that the program sits at.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.raw()).ifindex }
    }

    /// The frame carries a VLAN tag, which is not in its bytes.
    #[inline(always)]
    pub fn tagged(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw()).vlan_present != 0 }
    }

    /// The frame was addressed to the device.
    #[inline(always)]
    pub fn to_host(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw()).pkt_type == PACKET_HOST }
    }

    /// The frame stands for several.
    #[inline(always)]
    pub fn gso(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw()).gso_size != 0 }
    }

    /// The packet, or each of those that it stands for, is no longer than `mtu`; 0: nobody knows. `headers`: the
    /// length of the frame up to what they share.
    #[inline(always)]
    pub fn fits(self, mtu: u32, headers: u32) -> bool {
        // SAFETY: as above.
        let gso = unsafe { (*self.raw()).gso_size };
        let len = if gso == 0 { self.len() } else { headers + gso };
        mtu == 0 || len <= mtu + ETH_LEN
    }

    /// What lies at `offset` of the frame, a constant, if that is in the frame's first piece of memory; there
    /// until the frame is changed.
    #[inline(always)]
    pub fn peek<T: Plain>(self, offset: u32) -> Option<&'static T> {
        // SAFETY: as above.
        let (from, end) = unsafe { ((*self.raw()).data as usize, (*self.raw()).data_end as usize) };
        let at = from + offset as usize;
        if at + size_of::<T>() > end {
            return None;
        }
        // SAFETY: in the packet, as just seen; every value is valid.
        Some(unsafe { &*(at as *const T) })
    }

    /// Writes Ethernet addresses in place; false if they are not in the frame's first piece of memory. A
    /// program that calls this gets a beginning by the kernel that makes frames whose bytes somebody else
    /// has, too, its own: not for one that most frames leave as they came.
    #[inline(always)]
    pub fn address(self, dst: &[u8; 6], src: &[u8; 6]) -> bool {
        // SAFETY: as above.
        let (from, end) = unsafe { ((*self.raw()).data as usize, (*self.raw()).data_end as usize) };
        if from + size_of::<[Mac; 2]>() > end {
            return false;
        }
        let halves = |mac: &[u8; 6]| {
            let [a, b, c, d, e, f] = *mac;
            [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
        };
        // SAFETY: in the packet, as just seen; packets begin at even addresses.
        unsafe { *(from as *mut [Mac; 2]) = [halves(dst), halves(src)] };
        true
    }

    /// A word at the even `offset`, as [`Self::peek`]. Packets begin at even addresses: half a word can be
    /// read at once.
    #[inline(always)]
    pub fn word(self, offset: u32) -> Option<u32> {
        let Halves(a, b) = *self.peek(offset)?;
        Some(u32::from(a) | u32::from(b) << 16)
    }

    /// As [`Self::load`] from a constant offset, without a call where [`Self::peek`] sees it. `to` must lie at
    /// an even address, as everything does in `Work` that is read so.
    #[inline(always)]
    pub fn read<T: Plain>(self, offset: u32, to: &mut T) -> bool {
        let Some(from) = self.peek::<T>(offset) else {
            return self.load(offset, to);
        };
        let (from, to) = (ptr::from_ref(from).cast::<u16>(), ptr::from_mut(to).cast::<u16>());
        for i in 0..size_of::<T>() / 2 {
            // Volatile: else all is read first, and has no room but on the stack.
            // SAFETY: within both, which are of even size and at even addresses.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
        true
    }

    /// Reads bytes; false if the frame ends before.
    #[inline(always)]
    pub fn load<T: Plain>(self, offset: u32, to: &mut T) -> bool {
        // SAFETY: `to` is size_of::<T>() writable bytes for which every value is valid.
        unsafe { bpf_skb_load_bytes(self.0, offset, ptr::from_mut(to).cast(), size_of::<T>() as u32) == 0 }
    }

    /// Writes bytes, leaving the kernel's notes on checksums alone: for changes that do not change
    /// the sum (an address together with its checksums), and for the Ethernet header.
    #[inline(always)]
    pub fn store<T: Plain>(self, offset: u32, from: &T) -> bool {
        self.store_with(offset, from, 0)
    }

    /// Writes a packet's new upper layers.
    #[inline(always)]
    pub fn overwrite<T: Plain>(self, offset: u32, from: &T) -> bool {
        self.store_with(offset, from, u64::from(BPF_F_RECOMPUTE_CSUM) | u64::from(BPF_F_INVALIDATE_HASH))
    }

    #[inline(always)]
    fn store_with<T: Plain>(self, offset: u32, from: &T, flags: u64) -> bool {
        // SAFETY: `from` is size_of::<T>() readable bytes.
        unsafe { bpf_skb_store_bytes(self.raw(), offset, ptr::from_ref(from).cast(), size_of::<T>() as u32, flags) == 0 }
    }

    /// Changes the upper layer's checksum by one word. `udp`: a checksum of zero is none and stays so.
    #[inline(always)]
    pub fn l4_checksum(self, offset: u32, from: u32, to: u32, udp: bool) -> bool {
        let flags = 4 | if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.raw(), offset, u64::from(from), u64::from(to), flags) == 0 }
    }

    /// Changes the upper layer's checksum by a difference. `pseudo`: of its pseudo header. `udp`: as for
    /// [`Self::l4_checksum`].
    #[inline(always)]
    pub fn l4_checksum_by(self, offset: u32, by: u32, pseudo: bool, udp: bool) -> bool {
        let flags = if pseudo { u64::from(BPF_F_PSEUDO_HDR) } else { 0 } | if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.raw(), offset, 0, u64::from(by), flags) == 0 }
    }

    /// Changes the kernel's note of the sum over the packet, where it has one.
    #[inline(always)]
    pub fn sum_by(self, by: u32) {
        // Fails where there is no such note.
        // SAFETY: as above.
        unsafe { bpf_csum_update(self.raw(), by) };
    }

    /// Changes ICMP's checksum by half a word.
    #[inline(always)]
    pub fn icmp_checksum(self, offset: u32, from: u16, to: u16) -> bool {
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.raw(), offset, u64::from(from), u64::from(to), 2) == 0 }
    }

    /// Makes the frame `len` bytes long.
    #[inline(always)]
    pub fn resize(self, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_change_tail(self.raw(), len, 0) == 0 }
    }

    /// Sends the frame out of a device, as it is.
    #[inline(always)]
    pub fn send(self, ifindex: u32, reason: Reason) -> i32 {
        // SAFETY: only numbers.
        verdict(unsafe { bpf_redirect(ifindex, 0) }, reason)
    }

    /// Hands the frame to the other end of a veth, which must be in another namespace, as if it had
    /// come in there; `queued`: by this end's output, with its queue, where its Ethernet addresses must be right.
    #[inline(always)]
    pub fn hand_over(self, ifindex: u32, queued: bool, reason: Reason) -> i32 {
        // The frame may have been addressed to another device than the one it came in at; nobody
        // looks at its Ethernet header again.
        // SAFETY: only numbers beside the context; so below.
        let ret = if unsafe { bpf_skb_change_type(self.raw(), PACKET_HOST) } != 0 {
            0
        } else if queued {
            unsafe { bpf_redirect(ifindex, 0) }
        } else {
            unsafe { bpf_redirect_peer(ifindex, 0) }
        };
        // In one place: the verifier goes through it for each.
        verdict(ret, reason)
    }

    /// Has the frame come in at a device of this host.
    #[inline(always)]
    pub fn take_in(self, ifindex: u32, reason: Reason) -> i32 {
        // SAFETY: only numbers.
        verdict(unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) }, reason)
    }

    /// Sends the packet where the routing table says, out of this device.
    #[inline(always)]
    pub fn route(self, ifindex: u32, reason: Reason) -> i32 {
        // SAFETY: no parameters given, so the kernel looks the route up.
        verdict(
            unsafe { bpf_redirect_neigh(ifindex, ptr::null_mut::<c_void>().cast(), 0, 0) },
            reason,
        )
    }
}

#[inline(always)]
fn verdict(ret: i64, reason: Reason) -> i32 {
    if ret == REDIRECT {
        count(reason);
        REDIRECT as i32
    } else {
        drop(Reason::DropFailed)
    }
}
