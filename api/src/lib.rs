//! What crosses a process boundary: the gRPC messages between nodes, the REST types between a host's
//! programs and its meshd, and the client for the latter.

pub mod local;
pub mod query;
pub mod rest;

/// Generated from proto/meshd.proto.
#[expect(missing_docs, clippy::allow_attributes, reason = "generated code")]
pub mod proto {
    tonic::include_proto!("meshd.v1");
}

/// Port of the control plane.
pub const CONTROL_PORT: u16 = 2377;
