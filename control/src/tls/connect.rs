//! One TLS connection to a manager, with errors that say what is wrong at the other end.

use std::{io, sync::Arc, time::Duration};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{io::AsyncBufReadExt as _, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Why there is no connection. Display is the short reason, without the address.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("{}", io_reason(.0))]
    Tcp(io::Error),
    /// TCP or TLS took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// Something answered that does not speak TLS, or hung up at once.
    #[error("it does not speak TLS: something other than meshd listens there")]
    NotTls,
    /// The peer's certificate was refused, or ours was by the peer.
    #[error("{}", tls_reason(.0))]
    Tls(rustls::Error),
    /// The peer hung up after TLS.
    #[error("it closed the connection: it is stopping, or has too many")]
    Closed,
}

/// A TLS error in a few words.
pub fn tls_reason(e: &rustls::Error) -> String {
    use rustls::{AlertDescription as A, CertificateError, Error};
    match e {
        Error::AlertReceived(A::CertificateExpired) => "TLS: it refuses this node's certificate, which has expired".into(),
        Error::AlertReceived(A::UnknownCA) => "TLS: it refuses this node's certificate, which is not of its cluster".into(),
        Error::AlertReceived(A::BadCertificate | A::CertificateUnknown | A::AccessDenied) => {
            "TLS: it refuses this node's certificate".into()
        }
        // The library's texts have the time in them: each would be another reason.
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "TLS: its certificate has expired, by this host's clock".into()
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "TLS: its certificate is not valid yet, by this host's clock".into()
        }
        Error::InvalidCertificate(CertificateError::Other(why)) => format!("TLS: {}", why.0),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => "TLS: its certificate is not of this cluster".into(),
        e => format!("TLS: {e}"),
    }
}

/// An I/O error in a few words; the system's own text says the same in more.
pub fn io_reason(e: &io::Error) -> String {
    use io::ErrorKind as K;
    match e.kind() {
        K::ConnectionRefused => "connection refused".into(),
        K::TimedOut => "timed out".into(),
        K::HostUnreachable => "no route to host".into(),
        K::NetworkUnreachable => "network unreachable".into(),
        K::ConnectionReset => "connection reset".into(),
        _ => e.to_string(),
    }
}

/// Connects to `addr` (`host:port`), shakes hands and waits for the manager's first bytes, within
/// `timeout`.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(
    addr: &str,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    timeout: Duration,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let whole = async {
        let tcp = TcpStream::connect(addr).await.map_err(ConnectError::Tcp)?;
        tcp.set_nodelay(true).map_err(ConnectError::Tcp)?;
        let mut stream = TlsConnector::from(config).connect(name, tcp).await.map_err(tls_error)?;
        // In TLS 1.3 the client is done before the server has looked at its certificate. A server of
        // ours speaks first (HTTP/2's SETTINGS): only then the connection stands.
        if stream.fill_buf().await.map_err(tls_error)?.is_empty() {
            Err(ConnectError::Closed)
        } else {
            Ok(stream)
        }
    };
    tokio::time::timeout(timeout, whole)
        .await
        .unwrap_or(Err(ConnectError::Timeout(timeout)))
}

fn tls_error(e: io::Error) -> ConnectError {
    match e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::NotTls,
        Some(tls) => ConnectError::Tls(tls.clone()),
        // A server of another protocol closes on what it takes for garbage.
        None if e.kind() == io::ErrorKind::UnexpectedEof => ConnectError::NotTls,
        None => ConnectError::Tcp(e),
    }
}
