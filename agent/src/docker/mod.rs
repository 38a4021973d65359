//! Docker's plugin: a libnetwork remote network driver and IPAM driver, both named `mesh`. Docker's requests come
//! by the [`front`], a process that has the socket where dockerd looks for plugins. Started by [`crate::run`].
//!
//! Handlers translate ([`wire`]); what they ask for are commands like any other's ([`driver`]): the
//! reconcile loop makes the interface, Docker takes it into its container, and [`learn`] finds out
//! which container that was. Nothing is remembered here: the network follows from the address, the
//! endpoint from Docker's id of it.

mod driver;
pub mod engine;
mod events;
mod forgotten;
pub mod front;
pub mod health;
mod kills;
pub mod learn;
pub mod stopping;
mod wire;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::post,
};
use bytes::Bytes;
use mesh_core::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// As dockerd wants it (pkg/plugins/transport).
const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";

/// Serves until `stop`; requests under way are finished.
pub async fn serve(app: Arc<App>, listener: UnixListener, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(app))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// A verb without content.
async fn nothing() -> Response {
    reply(&json!({}))
}

fn reply(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => ([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response(),
        Err(e) => refused(&Refusal::other(format!("meshd's answer cannot be written: {e}"))),
    }
}

/// The network driver reads `Err`, the IPAM driver `Error`.
fn refused(refusal: &Refusal) -> Response {
    tracing::info!(why = %refusal.message, "refused docker");
    let text = json!({"Err": refusal.message, "Error": refusal.message}).to_string();
    ([(CONTENT_TYPE, MEDIA_TYPE)], text).into_response()
}

/// A verb: reads its message, does it to the end also when dockerd hangs up, answers.
async fn verb<T, A, F>(app: Arc<App>, body: Bytes, work: impl FnOnce(Arc<App>, T) -> F) -> Response
where
    T: for<'de> Deserialize<'de>,
    A: Serialize + Send + 'static,
    F: Future<Output = Result<A, Refusal>> + Send + 'static,
{
    let request = match wire::read::<T>(&body) {
        Ok(request) => request,
        Err(refusal) => return refused(&refusal),
    };
    match tokio::spawn(work(app, request)).await {
        Ok(Ok(answer)) => reply(&answer),
        Ok(Err(refusal)) => refused(&refusal),
        Err(e) => refused(&Refusal::other(format!("meshd failed: {e}"))),
    }
}

macro_rules! on {
    ($work:path) => {
        post(async |State(app): State<Arc<App>>, body: Bytes| verb(app, body, $work).await)
    };
}

/// A verb that has to know whether it is asked again.
macro_rules! on_again {
    ($work:path, $promises:expr) => {{
        let promises: Arc<driver::Promises> = $promises.clone();
        post(async move |State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes| {
            let again = headers.contains_key(front::REPEAT).then_some(promises);
            verb(app, body, move |app, request| $work(app, request, again)).await
        })
    }};
}

fn router(app: Arc<App>) -> Router {
    let promises = Arc::<driver::Promises>::default();
    Router::new()
        .route(
            "/Plugin.Activate",
            post(async || reply(&json!({"Implements": ["NetworkDriver", "IpamDriver"]}))),
        )
        .route(
            "/NetworkDriver.GetCapabilities",
            post(async || reply(&json!({"Scope": "local", "ConnectivityScope": "global"}))),
        )
        .route("/NetworkDriver.AllocateNetwork", post(nothing))
        .route("/NetworkDriver.FreeNetwork", post(nothing))
        .route("/NetworkDriver.CreateNetwork", on!(driver::create_network))
        // A mesh network spans hosts, and outlives what one of them calls it.
        .route("/NetworkDriver.DeleteNetwork", post(nothing))
        .route("/NetworkDriver.CreateEndpoint", on!(driver::create_endpoint))
        .route("/NetworkDriver.EndpointOperInfo", post(async || reply(&json!({"Value": {}}))))
        .route("/NetworkDriver.DeleteEndpoint", on!(driver::delete_endpoint))
        .route("/NetworkDriver.Join", on!(driver::join))
        .route("/NetworkDriver.Leave", post(nothing))
        .route("/NetworkDriver.DiscoverNew", post(nothing))
        .route("/NetworkDriver.DiscoverDelete", post(nothing))
        .route("/NetworkDriver.ProgramExternalConnectivity", on!(driver::program))
        .route("/NetworkDriver.RevokeExternalConnectivity", on!(driver::revoke))
        .route(
            "/IpamDriver.GetCapabilities",
            post(async || reply(&json!({"RequiresMACAddress": false, "RequiresRequestReplay": false}))),
        )
        .route(
            "/IpamDriver.GetDefaultAddressSpaces",
            post(async || reply(&json!({"LocalDefaultAddressSpace": wire::SPACE, "GlobalDefaultAddressSpace": wire::SPACE}))),
        )
        .route("/IpamDriver.RequestPool", on!(driver::request_pool))
        .route("/IpamDriver.ReleasePool", post(nothing))
        .route("/IpamDriver.RequestAddress", on_again!(driver::request_address, promises))
        .route("/IpamDriver.ReleaseAddress", on_again!(driver::release_address, promises))
        .with_state(app)
}
