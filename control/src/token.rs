//! Join tokens: `MESH-1-<digest>-<secret><check>`.
//!
//! The digest (52 characters) is the SHA-256 of the cluster's CA certificate, so that a joiner knows
//! whom it trusts before it says anything; the secret (26 characters, 128 random bits) shows the
//! cluster which role it grants; the check (6 characters) tells a token that was cut off or mistyped
//! from one that is wrong. All three are Crockford's base32 in lower case, as ids are. Read by
//! `join`, written and compared by `server`.

use std::{fmt, str::FromStr};

use mesh_core::{
    Refusal,
    objects::{Cluster, Role},
};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::pki::{self, Digest};

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const PREFIX: &str = "MESH-1-";
const DIGEST_CHARS: usize = 52;
const SECRET_CHARS: usize = 26;
const CHECK_CHARS: usize = 6;
/// Characters of a whole token.
pub const LEN: usize = PREFIX.len() + DIGEST_CHARS + 1 + SECRET_CHARS + CHECK_CHARS;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the cluster's CA certificate, DER.
    pub digest: Digest,
    /// The secret part.
    pub secret: String,
}

/// Draws the secret of a token.
pub fn new_secret() -> String {
    base32(&rand::random::<[u8; 16]>())
}

/// Whether `given` is `expected`, in a time that does not tell how much of it is right. An empty
/// secret fits nothing.
pub fn same_secret(given: &str, expected: &str) -> bool {
    !expected.is_empty() && bool::from(given.as_bytes().ct_eq(expected.as_bytes()))
}

/// The role that a secret grants in a cluster, if any.
pub fn role_of(secret: &str, cluster: &Cluster) -> Option<Role> {
    // Both are compared always, so that the time does not tell which role was tried.
    let worker = same_secret(secret, &cluster.worker_secret);
    let manager = same_secret(secret, &cluster.manager_secret);
    if manager {
        Some(Role::Manager)
    } else {
        worker.then_some(Role::Worker)
    }
}

/// The token that grants a role in a cluster.
///
/// # Errors
/// [`pki::PkiError`] when the cluster's CA certificate can not be read.
pub fn for_role(cluster: &Cluster, role: Role) -> Result<Token, pki::PkiError> {
    let digest = pki::digest(&pki::certificate(&cluster.ca_cert)?);
    let secret = match role {
        Role::Manager => cluster.manager_secret.clone(),
        Role::Worker => cluster.worker_secret.clone(),
    };
    Ok(Token { digest, secret })
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let body = format!("{PREFIX}{}-{}", base32(&self.digest), self.secret);
        write!(f, "{body}{}", check(&body))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("digest", &base32(&self.digest))
            .finish_non_exhaustive()
    }
}

impl FromStr for Token {
    type Err = Refusal;

    /// Reads a token. Errors never repeat it: it is a secret.
    fn from_str(s: &str) -> Result<Self, Refusal> {
        let whole = "copy the whole token that meshctl token worker prints on a manager";
        let s = s.trim();
        let Some(rest) = s.strip_prefix(PREFIX) else {
            let version = s
                .strip_prefix("MESH-")
                .and_then(|r| r.split('-').next())
                .filter(|v| !v.is_empty() && v.bytes().all(|b| b.is_ascii_digit()));
            return Err(Refusal::malformed(match version {
                Some(v) if v != "1" => format!(
                    "the token is of version {}, and this meshd reads version 1",
                    v.chars().take(8).collect::<String>()
                ),
                Some(_) => format!("the token has only {} characters, a whole one has {LEN}: {whole}", s.len()),
                None => format!("the token does not begin with {PREFIX}: {whole}"),
            }));
        };
        let at = |i: usize| PREFIX.len() + i + 1;
        for (i, c) in rest.chars().enumerate() {
            let fits = if i == DIGEST_CHARS {
                c == '-'
            } else {
                u8::try_from(c).is_ok_and(|b| ALPHABET.contains(&b))
            };
            if !fits {
                return Err(Refusal::malformed(format!(
                    "the token has {c:?} as character {}, which does not belong there: {whole}",
                    at(i)
                )));
            }
        }
        if s.len() != LEN {
            let how = if s.len() < LEN { "only " } else { "" };
            return Err(Refusal::malformed(format!(
                "the token has {how}{} characters, a whole one has {LEN}: {whole}",
                s.len()
            )));
        }
        let (body, given) = s.split_at(LEN - CHECK_CHARS);
        let (digest, secret) = body[PREFIX.len()..].split_at(DIGEST_CHARS);
        let wrong = || {
            Refusal::malformed(format!(
                "the token is mistyped: its last {CHECK_CHARS} characters do not fit the rest: {whole}"
            ))
        };
        if given != check(body) {
            return Err(wrong());
        }
        Ok(Self {
            digest: unbase32(digest).ok_or_else(wrong)?,
            secret: secret[1..].to_owned(),
        })
    }
}

/// The first 30 bits of the SHA-256 of what is checked.
fn check(body: &str) -> String {
    let mut text = base32(&Sha256::digest(body.as_bytes()));
    text.truncate(CHECK_CHARS);
    text
}

/// Crockford's base32, most significant bit first, the last character filled up with zero bits.
fn base32(bytes: &[u8]) -> String {
    let bit = |i: usize| bytes.get(i / 8).is_some_and(|b| b >> (7 - i % 8) & 1 == 1);
    let value = |c: usize| (0..5).fold(0usize, |v, k| v << 1 | usize::from(bit(5 * c + k)));
    (0..(bytes.len() * 8).div_ceil(5)).map(|c| char::from(ALPHABET[value(c)])).collect()
}

/// The 32 bytes of 52 characters; `None` when a character or a filling bit is wrong.
fn unbase32(text: &str) -> Option<Digest> {
    let mut out = [0u8; 32];
    for (c, ch) in text.bytes().enumerate() {
        let value = ALPHABET.iter().position(|a| *a == ch)?;
        for k in 0..5 {
            let set = value >> (4 - k) & 1 == 1;
            match out.get_mut((5 * c + k) / 8) {
                Some(byte) => *byte |= u8::from(set) << (7 - (5 * c + k) % 8),
                None if set => return None,
                None => {}
            }
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use mesh_core::RefusalKind;
    use proptest::prelude::*;

    use super::*;

    fn token(seed: u8) -> Token {
        Token {
            digest: [seed; 32],
            secret: new_secret(),
        }
    }

    #[test]
    fn each_way_to_be_wrong_is_told() {
        let good = token(7).to_string();
        assert_eq!(good.len(), LEN);
        let cases = [
            (String::new(), "does not begin with MESH-1-"),
            ("hello".into(), "does not begin with MESH-1-"),
            ("SWMTKN-1-abc-def".into(), "does not begin with MESH-1-"),
            (good.to_lowercase(), "does not begin with MESH-1-"),
            (good.replacen("MESH-1", "MESH-2", 1), "version 2"),
            ("MESH-1".into(), "only 6 characters"),
            (good[..40].into(), "only 40 characters"),
            (good[..LEN - 1].into(), "only 91 characters"),
            (format!("{good}0"), "has 93 characters"),
            (format!("{}O{}", &good[..20], &good[21..]), "'O' as character 21"),
            (format!("{}é{}", &good[..20], &good[21..]), "'é' as character 21"),
            (format!("{}0{}", &good[..59], &good[60..]), "'0' as character 60"),
        ];
        for (text, part) in cases {
            let e = text.parse::<Token>().unwrap_err();
            assert_eq!(e.kind, RefusalKind::Malformed);
            assert!(e.message.contains(part), "{text}: {e}");
            assert!(!e.message.contains('\n'));
        }
    }

    #[test]
    fn neither_errors_nor_debug_show_the_secret() {
        let t = token(1);
        assert!(!format!("{t:?}").contains(&t.secret));
        let text = t.to_string();
        let e = text[..LEN - 2].parse::<Token>().unwrap_err();
        assert!(!e.message.contains(&t.secret));
    }

    #[test]
    fn secrets_are_compared_whole() {
        assert!(same_secret("abc", "abc"));
        for (given, expected) in [("", ""), ("abc", "abd"), ("ab", "abc"), ("abc", ""), ("", "abc")] {
            assert!(!same_secret(given, expected), "{given:?} {expected:?}");
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_writes(digest: [u8; 32], secret: [u8; 16]) {
            let token = Token { digest, secret: base32(&secret) };
            prop_assert_eq!(format!(" {token}\n").parse::<Token>(), Ok(token));
        }

        #[test]
        fn one_wrong_character_is_noticed(digest: [u8; 32], secret: [u8; 16], at in 0..LEN, c in "[0-9a-zA-Z-]") {
            let text = Token { digest, secret: base32(&secret) }.to_string();
            let wrong = format!("{}{c}{}", &text[..at], &text[at + 1..]);
            // The check has 30 bits: a change inside it or by luck elsewhere is not proven, but this
            // many cases do not meet the one in a thousand million.
            prop_assert_eq!(wrong.parse::<Token>().is_ok(), wrong == text);
        }

        #[test]
        fn any_text_is_survived(text in ".{0,120}") {
            let _ = text.parse::<Token>();
            let _ = format!("MESH-1-{text}").parse::<Token>();
        }
    }
}
