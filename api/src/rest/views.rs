//! Objects as users see them: ids resolved to names, and what follows from several objects.
//!
//! Pure functions from [`mesh_core::objects::Objects`], called by meshd's local API.

mod bandwidth;
mod endpoint;
mod network;
mod node;
mod service;

pub use bandwidth::{BandwidthView, RateView};
pub use endpoint::{EndpointView, MemberView, StateView};
pub use network::{NetworkView, SubnetView};
pub use node::NodeView;
pub use service::{PortView, ServiceView, SourceRangeView, VipView};
