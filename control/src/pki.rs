//! The cluster's certificate authority, node certificates and the names in them.
//!
//! Called by `manager` (a new cluster), `server` (enrolment and renewal), `join` (requests) and
//! `tls` (who the peer is). One authority per cluster signs every node certificate; each names
//! cluster, node and role in exactly one SPIFFE URI, which is checked here by hand because webpki
//! does not look at URI names.

use std::{
    fmt,
    ops::Range,
    time::{Duration, SystemTime},
};

use mesh_core::{Id, objects::Role};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest as _, Sha256};
use x509_parser::{extensions::GeneralName, prelude::FromDer, prelude::X509Certificate};

/// How long an authority's certificate is valid: 10 years.
pub const CA_LIFETIME: Duration = Duration::from_secs(3650 * 86_400);
/// How long a node's certificate is valid: 90 days.
pub const NODE_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// Certificates are valid from this long ago, so that a clock an hour behind still takes them.
pub const SKEW: Duration = Duration::from_secs(3600);

/// Bytes of an uncompressed P-256 point (SEC 1, section 2.3.3).
const P256_POINT: usize = 65;
/// Longest signing request that is looked at, in bytes; ours have about 500.
const MAX_CSR: usize = 16 * 1024;

/// SHA-256 of an authority's certificate, DER: what a join token trusts.
pub type Digest = [u8; 32];

/// A certificate or request could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// rcgen did not make or read it.
    #[error("can not {what}")]
    Make {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The request's key is not one that meshd makes.
    #[error("the signing request's key is not an ECDSA key on P-256")]
    Key,
    /// The request is larger than any that meshd makes.
    #[error("the signing request has {0} bytes, more than {MAX_CSR}")]
    TooLarge(usize),
    /// Not a certificate in PEM.
    #[error("not a certificate in PEM: {0}")]
    Pem(String),
}

/// Why a certificate does not name a node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It can not be parsed.
    #[error("the certificate can not be read: {0}")]
    Unreadable(String),
    /// It names none or several.
    #[error("the certificate has {0} URI names, and must have exactly one")]
    Uris(usize),
    /// The name is not of our form.
    #[error("the certificate's name {0:?} is not of the form spiffe://CLUSTER/node/NODE/ROLE")]
    Form(String),
    /// It names another cluster.
    #[error("the certificate is of cluster {found}, not of {expected}")]
    Cluster {
        /// What it names.
        found: Id,
        /// Ours.
        expected: Id,
    },
    /// The role is not the one that is needed.
    #[error("the certificate is that of a {found}, and must be that of a {expected}")]
    Role {
        /// What it names.
        found: &'static str,
        /// What is needed.
        expected: &'static str,
    },
}

/// What a certificate says about its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeName {
    /// The cluster.
    pub cluster: Id,
    /// The node.
    pub node: Id,
    /// What the node was when the certificate was made.
    pub role: Role,
    /// A manager's raft id then: the index of the log entry that made it one, so a certificate of before a
    /// demotion can be told from one of after it. 0 for workers, and where the certificate is of a release
    /// that did not say it. It stands in the subject, not in the URI.
    pub raft_id: u64,
}

/// What precedes the raft id in the subject's common name.
const RAFT: &str = "manager ";

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/node/{}/{}", self.cluster, self.node, self.role.as_str())
    }
}

impl NodeName {
    /// Reads the form that [`fmt::Display`] writes, and no other.
    ///
    /// # Errors
    /// [`PeerError::Form`].
    pub fn parse(uri: &str) -> Result<Self, PeerError> {
        let form = || PeerError::Form(uri.chars().take(120).collect());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(form)?;
        let mut parts = rest.split('/');
        let (Some(cluster), Some("node"), Some(node), Some(role), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        let role = [Role::Manager, Role::Worker]
            .into_iter()
            .find(|r| r.as_str() == role)
            .ok_or_else(form)?;
        Ok(Self {
            cluster: cluster.parse().map_err(|_| form())?,
            node: node.parse().map_err(|_| form())?,
            role,
            raft_id: 0,
        })
    }

    /// The name that a certificate carries, whatever the cluster. Signature and dates are not
    /// looked at: that is TLS's work.
    ///
    /// # Errors
    /// Anything but exactly one URI name, of our form.
    pub fn of_certificate(der: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let unreadable = |e: &dyn fmt::Display| PeerError::Unreadable(e.to_string());
        let (_, cert) = X509Certificate::from_der(der).map_err(|e| unreadable(&e))?;
        let san = cert.subject_alternative_name().map_err(|e| unreadable(&e))?;
        let uris: Vec<&str> = san
            .iter()
            .flat_map(|ext| &ext.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        match uris[..] {
            [uri] => Self::parse(uri).map(|name| Self {
                raft_id: if name.role == Role::Manager { raft_id_of(&cert) } else { 0 },
                ..name
            }),
            _ => Err(PeerError::Uris(uris.len())),
        }
    }

    /// The name that a certificate of `cluster` carries.
    ///
    /// # Errors
    /// As [`Self::of_certificate`], and [`PeerError::Cluster`] for a foreign one.
    pub fn of_member(der: &CertificateDer<'_>, cluster: Id) -> Result<Self, PeerError> {
        let name = Self::of_certificate(der)?;
        if name.cluster == cluster {
            Ok(name)
        } else {
            Err(PeerError::Cluster {
                found: name.cluster,
                expected: cluster,
            })
        }
    }

    /// Refuses a name whose role is not `role`.
    ///
    /// # Errors
    /// [`PeerError::Role`].
    pub fn require(self, role: Role) -> Result<Self, PeerError> {
        if self.role == role {
            Ok(self)
        } else {
            Err(PeerError::Role {
                found: self.role.as_str(),
                expected: role.as_str(),
            })
        }
    }
}

/// The raft id in a certificate's subject; 0 when there is none.
fn raft_id_of(cert: &X509Certificate<'_>) -> u64 {
    let names = cert.subject().iter_common_name().filter_map(|cn| cn.as_str().ok());
    names.filter_map(|cn| cn.strip_prefix(RAFT)?.parse().ok()).next().unwrap_or(0)
}

/// The DNS name that every node certificate of a cluster carries, for TLS's server name: addresses
/// change, and who the peer is stands in the URI.
pub fn server_name(cluster: Id) -> String {
    format!("node.{cluster}.mesh")
}

/// SHA-256 of a certificate in DER.
pub fn digest(der: &CertificateDer<'_>) -> Digest {
    Sha256::digest(der).into()
}

/// Reads the first certificate of a PEM text.
///
/// # Errors
/// [`PkiError::Pem`].
pub fn certificate(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| PkiError::Pem(e.to_string()))
}

/// Reads every certificate of a PEM text, in order.
///
/// # Errors
/// [`PkiError::Pem`], also when there is none.
pub fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if all.is_empty() => Err(PkiError::Pem("there is none in it".into())),
        all => all.map_err(|e| PkiError::Pem(e.to_string())),
    }
}

/// Whom a certificate is about, in the form of RFC 4514.
///
/// # Errors
/// [`PeerError::Unreadable`].
pub fn subject(der: &CertificateDer<'_>) -> Result<String, PeerError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| PeerError::Unreadable(e.to_string()))?;
    Ok(cert.subject().to_string())
}

/// From when to when a certificate is valid, in seconds since 1970.
///
/// # Errors
/// [`PeerError::Unreadable`].
pub fn validity(der: &CertificateDer<'_>) -> Result<Range<i64>, PeerError> {
    let (_, cert) = X509Certificate::from_der(der).map_err(|e| PeerError::Unreadable(e.to_string()))?;
    Ok(cert.validity().not_before.timestamp()..cert.validity().not_after.timestamp())
}

/// Makes a node's private key; PKCS#8 PEM.
///
/// # Errors
/// [`PkiError::Make`] when there is no randomness.
pub fn new_key() -> Result<String, PkiError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| PkiError::Make {
        what: "make a private key",
        source,
    })?;
    Ok(key.serialize_pem())
}

/// Makes a signing request for a key, without names: the authority fills them in.
///
/// # Errors
/// [`PkiError::Make`] when the key is none.
pub fn signing_request(key_pem: &str) -> Result<String, PkiError> {
    let make = |source| PkiError::Make {
        what: "make a signing request",
        source,
    };
    let key = KeyPair::from_pem(key_pem).map_err(make)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serialize_request(&key).and_then(|csr| csr.pem()).map_err(make)
}

/// A cluster's certificate authority: its certificate and key.
pub struct Authority {
    cluster: Id,
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the authority of a new cluster.
    ///
    /// # Errors
    /// [`PkiError::Make`] when there is no randomness.
    pub fn create(cluster: Id) -> Result<Self, PkiError> {
        let make = |source| PkiError::Make {
            what: "make the cluster's authority",
            source,
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = root_params(cluster);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let cert = params.self_signed(&key).map_err(make)?;
        Self::load(cluster, &cert.pem(), &key.serialize_pem())
    }

    /// The root `next`, which replaces this one, as signed by this one: whoever trusts this one follows it to
    /// certificates of the next; PEM.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn cross_sign(&self, next: &Self) -> Result<String, PkiError> {
        let make = |source| PkiError::Make {
            what: "sign the cluster's new authority",
            source,
        };
        let key = KeyPair::from_pem(&next.key_pem).map_err(make)?;
        let mut params = root_params(self.cluster);
        // Another one like it may follow, when the next root is replaced in its turn.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&key, &self.issuer).map_err(make)?.pem())
    }

    /// Takes up an authority from its PEM texts.
    ///
    /// # Errors
    /// [`PkiError::Make`] when they can not be read.
    pub fn load(cluster: Id, cert_pem: &str, key_pem: &str) -> Result<Self, PkiError> {
        let make = |source| PkiError::Make {
            what: "read the cluster's authority",
            source,
        };
        let key = KeyPair::from_pem(key_pem).map_err(make)?;
        let issuer = Issuer::from_ca_cert_pem(cert_pem, key).map_err(make)?;
        Ok(Self {
            cluster,
            cert_pem: cert_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            issuer,
        })
    }

    /// Its certificate, PEM.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Its private key, PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Digest of its certificate.
    ///
    /// # Errors
    /// [`PkiError::Pem`].
    pub fn digest(&self) -> Result<Digest, PkiError> {
        Ok(digest(&certificate(&self.cert_pem)?))
    }

    /// Signs a request for a node, from now on for [`NODE_LIFETIME`]; `raft_id` is a manager's, 0 for workers.
    /// Only the request's public key is taken, after its signature has shown that the requester holds the
    /// private one; PEM.
    ///
    /// # Errors
    /// [`PkiError`] when the request can not be read, is not signed by its key, or has a key of
    /// another kind.
    pub fn sign(&self, csr_pem: &str, node: Id, role: Role, raft_id: u64) -> Result<String, PkiError> {
        let now = SystemTime::now();
        let name = NodeName {
            cluster: self.cluster,
            node,
            role,
            raft_id,
        };
        self.sign_names(csr_pem, &[name.to_string()], raft_id, now - SKEW..now + NODE_LIFETIME)
    }

    /// As [`Self::sign`], with other dates, and without a raft id.
    ///
    /// # Errors
    /// As [`Self::sign`].
    pub fn sign_for(&self, csr_pem: &str, node: Id, role: Role, valid: Range<SystemTime>) -> Result<String, PkiError> {
        let name = NodeName {
            cluster: self.cluster,
            node,
            role,
            raft_id: 0,
        };
        self.sign_names(csr_pem, &[name.to_string()], 0, valid)
    }

    fn sign_names(&self, csr_pem: &str, uris: &[String], raft_id: u64, valid: Range<SystemTime>) -> Result<String, PkiError> {
        let request = read_request(csr_pem)?;
        let make = |source| PkiError::Make {
            what: "sign a node's certificate",
            source,
        };
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if raft_id > 0 {
            params.distinguished_name.push(DnType::CommonName, format!("{RAFT}{raft_id}"));
        }
        params.serial_number = Some(serial());
        params.not_before = valid.start.into();
        params.not_after = valid.end.into();
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.clone().try_into().map_err(make)?));
        }
        params
            .subject_alt_names
            .push(SanType::DnsName(server_name(self.cluster).try_into().map_err(make)?));
        Ok(params.signed_by(&request.public_key, &self.issuer).map_err(make)?.pem())
    }
}

/// What all forms of a root have in common.
fn root_params(cluster: Id) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("mesh cluster {cluster}"));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    params.not_before = (now - SKEW).into();
    params.not_after = (now + CA_LIFETIME).into();
    params
}

/// A node id that follows from the key of a signing request, so that a request which is repeated
/// after a lost answer is the same node's. The request's signature is checked.
///
/// # Errors
/// As [`Authority::sign`].
pub fn id_of_request(csr_pem: &str) -> Result<Id, PkiError> {
    let request = read_request(csr_pem)?;
    let digest = Sha256::digest(request.public_key.der_bytes());
    Ok(Id::from_bits(
        digest.iter().take(8).fold(0, |bits, byte| bits << 8 | u64::from(*byte)),
    ))
}

fn read_request(csr_pem: &str) -> Result<CertificateSigningRequestParams, PkiError> {
    if csr_pem.len() > MAX_CSR {
        return Err(PkiError::TooLarge(csr_pem.len()));
    }
    let request = CertificateSigningRequestParams::from_pem(csr_pem).map_err(|source| PkiError::Make {
        what: "read the signing request",
        source,
    })?;
    if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 || request.public_key.der_bytes().len() != P256_POINT {
        return Err(PkiError::Key);
    }
    Ok(request)
}

/// A random serial number of 127 bits: positive, and at most 20 octets (RFC 5280, 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

#[cfg(test)]
#[path = "pki_tests.rs"]
mod tests;
