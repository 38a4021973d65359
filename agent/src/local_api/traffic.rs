//! Handlers for what the data plane counts and tells.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use futures::StreamExt;
use mesh_api::rest::{FlowsQuery, TrafficView, paths};
use mesh_core::spec::unknown;

use super::{Answer, Args, Ctx, Refused, answer};
use crate::{app::App, traffic};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route(paths::TRAFFIC, get(totals)).route(paths::FLOWS, get(flows))
}

async fn totals(State(app): Ctx) -> Answer<TrafficView> {
    let counted = traffic::read(&app.requests).await;
    answer(counted.map(|c| c.view(&app.ledger.view().objects)))
}

/// Lines of JSON until the caller hangs up. The head of the answer is sent once the programs tell;
/// a caller that reads too slowly is told how much it missed.
async fn flows(State(app): Ctx, Args(q): Args<FlowsQuery>) -> Result<Response, Refused> {
    let service = match &q.service {
        Some(r) => {
            let view = app.ledger.view();
            let found = view.objects.service(r).map(|s| s.id);
            Some(found.ok_or_else(|| unknown("service", r))?)
        }
        None => None,
    };
    let lines = app.flows.open(q.drops, service).await?.map(|line| {
        let mut line = serde_json::to_vec(&line).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(line))
    });
    Ok(([("content-type", "application/x-ndjson")], axum::body::Body::from_stream(lines)).into_response())
}
