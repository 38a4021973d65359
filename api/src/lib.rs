//! What crosses a process boundary: the gRPC messages between nodes, the REST types between a host's
//! programs and its meshd, and the client for the latter; and what meshd asks of container runtimes.

#[cfg(feature = "client")]
pub mod local;
pub mod query;
pub mod rest;

/// Generated from proto/meshd.proto.
#[cfg(feature = "rpc")]
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("meshd.v1");
}

/// Generated from proto/cri.proto: a part of the Container Runtime Interface.
#[cfg(feature = "rpc")]
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code")]
pub mod cri {
    tonic::include_proto!("runtime.v1");
}

/// Where meshd listens for a host's programs unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/meshd/meshd.sock";
/// Port of the control plane.
pub const CONTROL_PORT: u16 = 2377;
