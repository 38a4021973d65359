//! Bytes that look random and are the same each time: what big transfers carry.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use sha2::{Digest, Sha256};

/// Bytes of one piece; a multiple of 8.
const PIECE: u64 = 64 * 1024;

/// A stream of `left` more bytes. The order is that of the SplitMix64 generator, seeded with 0.
pub struct Noise {
    state: u64,
    left: u64,
}

impl Noise {
    /// `len` bytes.
    pub fn new(len: u64) -> Self {
        Self { state: 0, left: len }
    }

    /// SHA-256 of the whole, in hex.
    pub fn digest(len: u64) -> String {
        let mut hash = Sha256::new();
        Self::new(len).for_each(|piece| hash.update(&piece));
        hex(&hash.finalize())
    }
}

impl Iterator for Noise {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let len = self.left.min(PIECE);
        self.left -= len;
        let mut piece = Vec::with_capacity(PIECE as usize);
        while (piece.len() as u64) < len {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            piece.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
        }
        piece.truncate(len as usize);
        Some(piece.into())
    }
}

impl Body for Noise {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next().map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_has_the_length_asked_for_and_repeats() {
        for len in [0, 1, 7, 8, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5] {
            assert_eq!(Noise::new(len).map(|p| p.len() as u64).sum::<u64>(), len);
            assert_eq!(Noise::digest(len), Noise::digest(len));
        }
        assert_ne!(Noise::digest(1000), Noise::digest(1001));
    }

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        // FIPS 180-4 test vector for the empty message.
        assert_eq!(Noise::digest(0), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
