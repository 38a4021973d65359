//! REST on the unix socket: what meshctl, the runtimes' plugins and scripts talk to.
//!
//! Handlers translate; the work is [`crate::app::App`]'s. Bodies are those of
//! [`mesh_api::rest`]; a refusal is its JSON under the status of its kind.

mod attachments;
mod objects;
mod openapi;
mod traffic;

use std::{
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{
        FromRequest, FromRequestParts, Path as Param, Query, State,
        rejection::{JsonRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures::StreamExt;
use mesh_api::rest::{self, DoctorQuery, EventsQuery, InitRequest, JoinRequest, LeaveRequest, Since, paths};
use mesh_core::{Refusal, RefusalKind};
use serde::Serialize;
use tokio::net::UnixListener;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;

use crate::app::App;

/// What every handler gets.
type Ctx = State<Arc<App>>;

/// A refusal on its way out.
pub struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(r: Refusal) -> Self {
        Self(r)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, Json(self.0)).into_response()
    }
}

macro_rules! malformed_from {
    ($($rejection:ty),*) => {$(
        impl From<$rejection> for Refused {
            fn from(r: $rejection) -> Self {
                Self(Refusal::malformed(r.body_text().replace('\n', " ")))
            }
        }
    )*};
}
malformed_from!(JsonRejection, PathRejection, QueryRejection);

/// A JSON body; a wrong one is refused as malformed.
#[derive(FromRequest)]
#[from_request(via(Json), rejection(Refused))]
pub struct Body<T>(pub T);

/// The parameters of the query string.
#[derive(FromRequestParts)]
#[from_request(via(Query), rejection(Refused))]
pub struct Args<T>(pub T);

/// The reference in the path.
#[derive(FromRequestParts)]
#[from_request(via(Param), rejection(Refused))]
pub struct Ref<T>(pub T);

/// What a handler answers.
type Answer<T> = Result<Json<T>, Refused>;

fn answer<T: Serialize>(result: Result<T, Refusal>) -> Answer<T> {
    result.map(Json).map_err(Refused)
}

/// Carries a change of several steps through to its end, or to its undoing, also when the caller
/// hangs up half way: the handler's own future is dropped then.
async fn whole<T: Send + 'static>(work: impl Future<Output = Result<T, Refusal>> + Send + 'static) -> Result<T, Refusal> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|e| Err(Refusal::other(format!("meshd failed: {e}"))))
}

/// The socket can not be listened at.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {path}: {why}")]
pub struct ListenError {
    path: String,
    why: String,
}

/// Makes the socket (0660): a stale one is replaced, one that answers is another meshd's.
pub async fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let fail = |why: String| ListenError {
        path: path.display().to_string(),
        why,
    };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|e| fail(format!("cannot make its directory: {e}")))?;
    }
    if let Ok(meta) = path.symlink_metadata() {
        if !meta.file_type().is_socket() {
            return Err(fail("there is something that is no socket: remove it".into()));
        }
        if tokio::net::UnixStream::connect(path).await.is_ok() {
            return Err(fail("another meshd answers there: stop it first".into()));
        }
        std::fs::remove_file(path).map_err(|e| fail(format!("cannot remove the stale socket: {e}")))?;
    }
    let listener = UnixListener::bind(path).map_err(|e| fail(e.to_string()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(|e| fail(e.to_string()))?;
    Ok(listener)
}

/// Serves until `stop`; requests under way are finished.
pub async fn serve(app: Arc<App>, listener: UnixListener, stop: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router(app))
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route(paths::STATUS, get(status))
        .route(paths::DOCTOR, get(doctor))
        .route(paths::EVENTS, get(events))
        .route(paths::CLUSTER_INIT, post(init))
        .route(paths::CLUSTER_JOIN, post(join))
        .route(paths::CLUSTER_LEAVE, post(leave))
        .route("/openapi.json", get(openapi::document))
        .merge(objects::routes())
        .merge(attachments::routes())
        .merge(traffic::routes())
        .fallback(async || Refused(Refusal::not_found("no such path: see /openapi.json")))
        .method_not_allowed_fallback(async || {
            Refused(Refusal::new(
                RefusalKind::Other,
                "this path does not take that method: see /openapi.json",
            ))
        })
        .with_state(app)
}

async fn status(State(app): Ctx) -> Json<rest::StatusView> {
    Json(app.status().await)
}

async fn doctor(State(app): Ctx, Args(q): Args<DoctorQuery>) -> Json<rest::Doctor> {
    Json(crate::doctor::examine(&app, q.plan).await)
}

async fn init(State(app): Ctx, Body(request): Body<InitRequest>) -> Answer<rest::InitReply> {
    answer(whole(async move { app.membership.init(request).await }).await)
}

async fn join(State(app): Ctx, Body(request): Body<JoinRequest>) -> Answer<rest::JoinReply> {
    answer(whole(async move { app.membership.join(request).await }).await)
}

async fn leave(State(app): Ctx, Body(request): Body<LeaveRequest>) -> Answer<()> {
    answer(whole(async move { app.membership.leave(request.force).await }).await)
}

/// Lines of JSON until the caller hangs up. A caller that reads too slowly is cut off, and goes on
/// with `since` from the last revision that it has.
async fn events(State(app): Ctx, Args(q): Args<EventsQuery>) -> Result<Response, Refused> {
    let since = q
        .since
        .map(|s| s.parse::<Since>())
        .transpose()
        .map_err(|e| Refusal::malformed(e.to_string()))?;
    let (past, live) = app.events();
    let past: Vec<_> = past.into_iter().filter(|e| since.is_some_and(|s| s.covers(e))).collect();
    let live = BroadcastStream::new(live)
        .take_while(|e| futures::future::ready(e.is_ok()))
        .filter_map(async |e| e.ok());
    let lines = futures::stream::iter(past).chain(live).map(|event| {
        let mut line = serde_json::to_vec(&event).map_err(std::io::Error::other)?;
        line.push(b'\n');
        Ok::<_, std::io::Error>(Bytes::from(line))
    });
    Ok(([("content-type", "application/x-ndjson")], axum::body::Body::from_stream(lines)).into_response())
}
