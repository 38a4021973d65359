//! Whom a client takes for a manager: by the cluster's CA, or by a join token's digest of it.

use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::{Refusal, objects::Role};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    identity::IdentityStore,
    pki::{self, Digest, NodeName},
};

type Knows = dyn Fn(&NodeName) -> Result<(), Refusal> + Send + Sync;

/// What every verifier here leaves to the cryptography in use: the traits have no default for it.
macro_rules! signatures_of_the_provider {
    () => {
        fn verify_tls12_signature(
            &self,
            m: &[u8],
            c: &CertificateDer<'_>,
            d: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(m, c, d, &super::provider().signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            m: &[u8],
            c: &CertificateDer<'_>,
            d: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(m, c, d, &super::provider().signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            super::provider().signature_verification_algorithms.supported_schemes()
        }
    };
}

/// What a node knows of the managers: a refusal for one with a manager's certificate that is none any more.
#[derive(Clone)]
pub struct Roster(Arc<Knows>);

impl Roster {
    /// Asks `knows` at every handshake; see [`crate::authz::may_manage`].
    pub fn new(knows: impl Fn(&NodeName) -> Result<(), Refusal> + Send + Sync + 'static) -> Self {
        Self(Arc::new(knows))
    }
}

impl std::fmt::Debug for Roster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Roster")
    }
}

/// Verifies chain and dates by webpki, then that the peer is a manager of the cluster: workers have
/// certificates of the same CA, and must not pass for managers. The roots are those that the node trusts at
/// that moment, and with a roster the managers those that it knows.
#[derive(Debug)]
pub(super) struct ManagerVerifier {
    pub identity: Arc<IdentityStore>,
    pub roster: Option<Roster>,
}

fn refuse(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e))))
}

/// The roots of an identity: they were read when it was taken up.
fn roots(identity: &IdentityStore) -> Result<Arc<RootCertStore>, Error> {
    identity.roots().map_err(Error::General)
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ok = WebPkiServerVerifier::builder_with_provider(roots(&self.identity)?, super::provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let name = NodeName::of_member(end_entity, self.identity.file().cluster)
            .and_then(|n| n.require(Role::Manager))
            .map_err(refuse)?;
        if let Some(Roster(knows)) = &self.roster {
            knows(&name).map_err(refuse)?;
        }
        Ok(ok)
    }

    signatures_of_the_provider!();
}

/// Verifies chain and dates of whoever shows a certificate, by the roots that this manager trusts at that
/// moment. Who it is, and what that opens, is the gate's to judge.
#[derive(Debug)]
pub(super) struct NodeVerifier(pub Arc<IdentityStore>);

impl ClientCertVerifier for NodeVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Nodes have one certificate and need no hint.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        WebPkiClientVerifier::builder_with_provider(roots(&self.0)?, super::provider())
            .build()
            .map_err(|e| Error::General(e.to_string()))?
            .verify_client_cert(end_entity, intermediates, now)
    }

    signatures_of_the_provider!();
}

/// What a joiner learned about the host that it spoke to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinCheck {
    /// A manager of the token's cluster.
    Manager(NodeName),
    /// A meshd, of a cluster that the token is not for.
    OtherCluster,
    /// It speaks TLS and is no meshd.
    NotMeshd,
    /// Of the token's cluster, but its certificate does not hold.
    Bad(String),
}

/// Trusts the CA whose certificate has a digest, and nothing else.
#[derive(Debug)]
pub struct JoinVerifier {
    digest: Digest,
    seen: Mutex<Option<JoinCheck>>,
}

impl JoinVerifier {
    pub(super) fn new(digest: Digest) -> Self {
        Self {
            digest,
            seen: Mutex::new(None),
        }
    }

    /// What the last handshake showed; `None`: it did not get as far as a certificate.
    pub fn seen(&self) -> Option<JoinCheck> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>], now: UnixTime) -> JoinCheck {
        let name = NodeName::of_certificate(leaf);
        let Some(ca) = rest.iter().find(|c| pki::digest(c) == self.digest) else {
            return if name.is_ok() {
                JoinCheck::OtherCluster
            } else {
                JoinCheck::NotMeshd
            };
        };
        let bad = |e: &dyn std::fmt::Display| JoinCheck::Bad(e.to_string());
        let name = match name.and_then(|n| n.require(Role::Manager)) {
            Ok(name) => name,
            Err(e) => return bad(&e),
        };
        let mut roots = RootCertStore::empty();
        if let Err(e) = roots.add(ca.clone().into_owned()) {
            return bad(&e);
        }
        // The cluster's name comes from the leaf: it is the authority's word, checked right here.
        let verified = match WebPkiServerVerifier::builder_with_provider(Arc::new(roots), super::provider()).build() {
            Ok(webpki) => webpki.verify_server_cert(leaf, &[], &super::server_name(name.cluster), &[], now),
            Err(e) => return bad(&e),
        };
        match verified {
            Ok(_) => JoinCheck::Manager(name),
            Err(Error::InvalidCertificate(e)) => bad(&e),
            Err(e) => bad(&e),
        }
    }
}

impl ServerCertVerifier for JoinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let seen = self.check(end_entity, intermediates, now);
        let verdict = match &seen {
            JoinCheck::Manager(_) => Ok(ServerCertVerified::assertion()),
            JoinCheck::Bad(_) => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
            JoinCheck::OtherCluster | JoinCheck::NotMeshd => Err(Error::InvalidCertificate(CertificateError::UnknownIssuer)),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        verdict
    }

    signatures_of_the_provider!();
}
