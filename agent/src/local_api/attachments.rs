//! Handlers for this host's endpoints as the runtimes' plugins see them.

use std::sync::Arc;

use axum::{Router, extract::State, routing::post};
use mesh_api::rest::{
    AttachRequest, AttachmentView, AttachmentsQuery, DetachReply, DetachRequest, EndpointView, InsideLinkView, InsideRouteView, InsideView,
    paths,
};
use mesh_core::{
    Id, Refusal,
    desired::Queue,
    intent::{default_gateways, veth_name},
    objects::{Endpoint, Labels, Objects, Rate},
};

use super::{Answer, Args, Body, Ctx, answer, whole};
use crate::app::App;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route(paths::ATTACHMENTS, post(attach).get(list))
        .route(paths::ATTACHMENTS_DETACH, post(detach))
}

async fn attach(State(app): Ctx, Body(request): Body<AttachRequest>) -> Answer<AttachmentView> {
    let attach = async {
        let worker = app.clone();
        let id = whole(async move { worker.connect(&request.network, request.connect).await }).await?;
        attached(&app, id)
    };
    answer(attach.await)
}

/// An endpoint that was just attached, so that the ledger has it.
fn attached(app: &App, id: Id) -> Result<AttachmentView, Refusal> {
    let all = app.ledger.view().objects;
    let endpoint = all.endpoints.get(&id);
    let gone = || Refusal::not_found("the container was detached as soon as it was attached");
    endpoint.map(|e| view(e, &all)).ok_or_else(gone)
}

fn view(e: &Endpoint, all: &Objects) -> AttachmentView {
    AttachmentView {
        endpoint: EndpointView::of(e, all),
        host_ifname: veth_name(e.id),
        netns: e.sandbox.netns.clone(),
        inode: e.sandbox.inode,
        default_gateways: default_gateways(all, e),
        inside: None,
        error: None,
    }
}

async fn list(State(app): Ctx, Args(q): Args<AttachmentsQuery>) -> Answer<Vec<AttachmentView>> {
    let list = async {
        let labels = match &q.labels {
            Some(text) => serde_json::from_str::<Labels>(text)
                .map_err(|e| Refusal::malformed(format!("labels {text:?} are not a JSON object of texts: {e}")))?,
            None => Labels::new(),
        };
        let (found, all) = app.attachments_with(&labels).await?;
        let views = found.iter().map(|e| looked_at(e, &all, q.inside));
        Ok(futures::future::join_all(views).await)
    };
    answer(list.await)
}

async fn looked_at(e: &Endpoint, all: &Objects, inside: bool) -> AttachmentView {
    let mut view = view(e, all);
    if inside {
        match mesh_overlay::inspect(&e.sandbox.netns, e.sandbox.inode, &e.ifname).await {
            Ok(found) => {
                // What an engine takes is its own to queue.
                let bandwidth = e.sandbox.bandwidth.as_deref().filter(|_| e.sandbox.handover.is_none());
                view.inside = Some(inside_view(found, bandwidth.and_then(|b| b.egress)));
            }
            Err(e) => view.error = Some(crate::execute::chain(&e)),
        }
    }
    view
}

/// `limit`: of what the container sends.
fn inside_view(found: Option<mesh_overlay::Inside>, limit: Option<Rate>) -> InsideView {
    let Some(i) = found else { return InsideView::default() };
    let route = |(dst, gateway)| InsideRouteView { dst, gateway };
    InsideView {
        link: Some(InsideLinkView {
            mac: i.mac,
            mtu: i.mtu,
            up: i.up,
            limit_holds: limit.is_none_or(|rate| i.queue.is_some_and(|q| q.rate == Queue::new(rate, i.mtu).rate)),
        }),
        addrs: i.addrs,
        routes: i.routes.into_iter().map(route).collect(),
    }
}

async fn detach(State(app): Ctx, Body(request): Body<DetachRequest>) -> Answer<DetachReply> {
    answer(whole(async move { app.detach(&request).await }).await)
}
