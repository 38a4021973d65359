//! TLS between nodes: 1.3 only, both sides with a certificate of the cluster.
//!
//! The server side is used by `server`, the client side by `client`, `transport` and `join`. Own
//! certificates and the trusted roots come from the [`IdentityStore`] at every handshake. Sessions are never resumed: a
//! resumed one would be let in by a certificate that may have expired since.

mod connect;
mod verify;

use std::sync::Arc;

use mesh_core::Id;
use rustls::{
    ClientConfig, ServerConfig,
    client::{ResolvesClientCert, Resumption},
    crypto::CryptoProvider,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier as _},
    sign::CertifiedKey,
    version::TLS13,
};

use rustls_pki_types::{CertificateDer, UnixTime};

pub use connect::{ConnectError, connect, io_reason, tls_reason};
pub use verify::{JoinCheck, JoinVerifier, Roster};

use crate::{
    identity::IdentityStore,
    pki::{self, Digest},
};

/// The protocol that both sides must speak after TLS.
const ALPN: &[u8] = b"h2";

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA certificate can not be used.
    #[error("the cluster's CA certificate can not be used: {0}")]
    Ca(String),
    /// rustls refused the rest.
    #[error("can not configure TLS")]
    Config(#[source] rustls::Error),
}

/// The cryptography that all of meshd's TLS uses.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Hands out the identity's current certificate.
#[derive(Debug)]
struct Own(Arc<IdentityStore>);

impl ResolvesServerCert for Own {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified_key())
    }
}

impl ResolvesClientCert for Own {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified_key())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The server side. A client may come without a certificate, for enrolment; one that it shows must
/// be signed by a root that the cluster trusts, and in date.
///
/// # Errors
/// [`TlsError`] when the identity's roots can not be used.
pub fn server_config(identity: &Arc<IdentityStore>) -> Result<Arc<ServerConfig>, TlsError> {
    identity.roots().map_err(TlsError::Ca)?;
    let verifier = Arc::new(verify::NodeVerifier(identity.clone()));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(Own(identity.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Whether a peer that showed this chain (the leaf first) when it was let in would be let in now: by the roots that
/// this node trusts now, and in date.
pub fn lets_in(identity: &Arc<IdentityStore>, chain: &[CertificateDer<'_>]) -> bool {
    let Some((leaf, rest)) = chain.split_first() else { return false };
    let verifier = verify::NodeVerifier(identity.clone());
    verifier.verify_client_cert(leaf, rest, UnixTime::now()).is_ok()
}

/// The client side of a node: it talks to managers of its own cluster only; with a `roster` only to those that are
/// managers still, as far as it knows.
///
/// # Errors
/// [`TlsError`] when the identity's roots can not be used.
pub fn client_config(identity: &Arc<IdentityStore>, roster: Option<Roster>) -> Result<Arc<ClientConfig>, TlsError> {
    identity.roots().map_err(TlsError::Ca)?;
    let verifier = verify::ManagerVerifier {
        identity: identity.clone(),
        roster,
    };
    let mut config = client_builder(Arc::new(verifier))?.with_client_cert_resolver(Arc::new(Own(identity.clone())));
    finish(&mut config);
    Ok(Arc::new(config))
}

/// The client side of a host that has only a join token: it trusts the one CA whose certificate has
/// `digest`, and tells what it met in [`JoinVerifier::seen`].
///
/// # Errors
/// [`TlsError::Config`].
pub fn joiner_config(digest: Digest) -> Result<(Arc<ClientConfig>, Arc<JoinVerifier>), TlsError> {
    let verifier = Arc::new(JoinVerifier::new(digest));
    let mut config = client_builder(verifier.clone())?.with_no_client_auth();
    finish(&mut config);
    Ok((Arc::new(config), verifier))
}

type WantsCert = rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>;

fn client_builder(verifier: Arc<dyn rustls::client::danger::ServerCertVerifier>) -> Result<WantsCert, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

fn finish(config: &mut ClientConfig) {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
}

/// The name that a client of `cluster` sends and expects; see [`pki::server_name`].
pub fn server_name(cluster: Id) -> rustls_pki_types::ServerName<'static> {
    let name = pki::server_name(cluster).try_into().map(rustls_pki_types::ServerName::DnsName);
    // "node.", an id and ".mesh" are labels of letters and digits.
    name.unwrap_or(rustls_pki_types::ServerName::IpAddress(std::net::IpAddr::from([0, 0, 0, 0]).into()))
}
