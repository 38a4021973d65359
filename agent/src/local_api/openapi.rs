//! The description of the REST interface at `/openapi.json`, from one table of its operations.

use axum::Json;
use mesh_api::rest::{self, paths, schema};
use mesh_core::RefusalKind;
use utoipa::{
    OpenApi,
    openapi::{
        Content, HttpMethod, Paths, RefOr, Required, ResponseBuilder,
        path::{OperationBuilder, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ArrayBuilder, ObjectBuilder, Ref, Schema, Type},
    },
};

#[derive(OpenApi)]
#[openapi(
    info(title = "meshd", description = "The local interface of the network agent, on its unix socket."),
    components(schemas(
        rest::StatusView,
        rest::Doctor,
        rest::Event,
        rest::FlowLine,
        rest::TrafficView,
        rest::InitRequest,
        rest::InitReply,
        rest::JoinRequest,
        rest::JoinReply,
        rest::LeaveRequest,
        rest::TokenReply,
        rest::CaView,
        rest::NodeView,
        rest::NodePatch,
        rest::NetworkView,
        rest::PruneReply,
        rest::ConnectRequest,
        rest::DisconnectRequest,
        rest::EndpointView,
        rest::AttachRequest,
        rest::AttachmentView,
        rest::DetachRequest,
        rest::DetachReply,
        rest::EndpointPatch,
        rest::ServiceView,
        rest::ServiceUpdate,
        schema::NetworkSpec,
        schema::ServiceSpec,
        schema::Refusal
    ))
)]
struct Base;

/// What an operation answers.
enum Out {
    None,
    One(&'static str),
    List(&'static str),
}

/// Method, path, summary, schema of the body, answer, parameters of the query string.
type Operation = (
    HttpMethod,
    &'static str,
    &'static str,
    Option<&'static str>,
    Out,
    &'static [&'static str],
);

fn operations() -> Vec<Operation> {
    use HttpMethod::{Delete, Get, Patch, Post, Put};
    use Out::{List, None as Nothing, One};
    vec![
        (Get, paths::STATUS, "How this host is", None, One("StatusView"), &[]),
        (
            Get,
            paths::DOCTOR,
            "What is wrong with this host, and what the next pass would do",
            None,
            One("Doctor"),
            &["plan"],
        ),
        (
            Get,
            paths::EVENTS,
            "What happens, one JSON object per line",
            None,
            One("Event"),
            &["since"],
        ),
        (
            Get,
            paths::FLOWS,
            "New flows or dropped packets as they come, one JSON object per line",
            None,
            One("FlowLine"),
            &["drops", "service"],
        ),
        (
            Get,
            paths::TRAFFIC,
            "What this host's data plane has counted",
            None,
            One("TrafficView"),
            &[],
        ),
        (
            Post,
            paths::CLUSTER_INIT,
            "Make a cluster",
            Some("InitRequest"),
            One("InitReply"),
            &[],
        ),
        (
            Post,
            paths::CLUSTER_JOIN,
            "Join a cluster",
            Some("JoinRequest"),
            One("JoinReply"),
            &[],
        ),
        (Post, paths::CLUSTER_LEAVE, "Leave the cluster", Some("LeaveRequest"), Nothing, &[]),
        (Get, paths::TOKEN, "A join token", None, One("TokenReply"), &[]),
        (
            Post,
            paths::TOKEN_ROTATE,
            "A new join token; the old one is void",
            None,
            One("TokenReply"),
            &[],
        ),
        (Get, paths::CA, "The root of the nodes' certificates", None, One("CaView"), &[]),
        (Post, paths::CA_ROTATE, "Replace the root", None, One("CaView"), &[]),
        (Get, paths::NODES, "Nodes", None, List("NodeView"), &[]),
        (Get, paths::NODE, "A node", None, One("NodeView"), &[]),
        (Patch, paths::NODE, "Change a node", Some("NodePatch"), One("NodeView"), &[]),
        (Delete, paths::NODE, "Remove a node", None, Nothing, &["force"]),
        (Get, paths::NETWORKS, "Networks", None, List("NetworkView"), &[]),
        (
            Post,
            paths::NETWORKS,
            "Make a network",
            Some("NetworkSpec"),
            One("NetworkView"),
            &[],
        ),
        (
            Post,
            paths::NETWORKS_PRUNE,
            "Remove the networks that nobody uses",
            None,
            One("PruneReply"),
            &[],
        ),
        (Get, paths::NETWORK, "A network", None, One("NetworkView"), &[]),
        (Delete, paths::NETWORK, "Remove a network", None, Nothing, &[]),
        (
            Post,
            paths::NETWORK_CONNECT,
            "Attach a container of this host",
            Some("ConnectRequest"),
            One("EndpointView"),
            &[],
        ),
        (
            Post,
            paths::NETWORK_DISCONNECT,
            "Detach a container of this host",
            Some("DisconnectRequest"),
            Nothing,
            &[],
        ),
        (
            Get,
            paths::ATTACHMENTS,
            "This host's endpoints, and with inside=true what their containers have of them",
            None,
            List("AttachmentView"),
            &["labels", "inside"],
        ),
        (
            Post,
            paths::ATTACHMENTS,
            "Attach a container of this host",
            Some("AttachRequest"),
            One("AttachmentView"),
            &[],
        ),
        (
            Post,
            paths::ATTACHMENTS_DETACH,
            "Detach what has all of some labels",
            Some("DetachRequest"),
            One("DetachReply"),
            &[],
        ),
        (Get, paths::SERVICES, "Services", None, List("ServiceView"), &[]),
        (
            Post,
            paths::SERVICES,
            "Make a service",
            Some("ServiceSpec"),
            One("ServiceView"),
            &[],
        ),
        (Get, paths::SERVICE, "A service", None, One("ServiceView"), &[]),
        (
            Put,
            paths::SERVICE,
            "Change a service",
            Some("ServiceUpdate"),
            One("ServiceView"),
            &[],
        ),
        (Delete, paths::SERVICE, "Remove a service", None, Nothing, &[]),
        (
            Get,
            paths::SERVICE_ENDPOINTS,
            "Endpoints of a service",
            None,
            List("EndpointView"),
            &[],
        ),
        (Get, paths::ENDPOINTS, "Endpoints", None, List("EndpointView"), &[]),
        (Get, paths::ENDPOINT, "An endpoint", None, One("EndpointView"), &[]),
        (
            Patch,
            paths::ENDPOINT,
            "Let an endpoint drain, take it back, or give it another weight",
            Some("EndpointPatch"),
            One("EndpointView"),
            &[],
        ),
    ]
}

pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    let mut api = Base::openapi();
    api.info.version = env!("CARGO_PKG_VERSION").to_owned();
    let mut all = Paths::new();
    for (method, path, summary, body, out, query) in operations() {
        let text = || Schema::Object(ObjectBuilder::new().schema_type(Type::String).build());
        let parameter = |name: &str, place: ParameterIn, required| {
            ParameterBuilder::new()
                .name(name)
                .parameter_in(place)
                .required(required)
                .schema(Some(text()))
                .build()
        };
        let mut operation = OperationBuilder::new().summary(Some(summary));
        if let (Some(open), Some(close)) = (path.find('{'), path.find('}')) {
            operation = operation.parameter(parameter(&path[open + 1..close], ParameterIn::Path, Required::True));
        }
        for name in query {
            operation = operation.parameter(parameter(name, ParameterIn::Query, Required::False));
        }
        if let Some(name) = body {
            let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name(name))));
            operation = operation.request_body(Some(
                RequestBodyBuilder::new()
                    .content("application/json", content)
                    .required(Some(Required::True))
                    .build(),
            ));
        }
        let schema = match out {
            Out::None => None,
            Out::One(name) => Some(RefOr::Ref(Ref::from_schema_name(name))),
            Out::List(name) => Some(RefOr::T(Schema::Array(
                ArrayBuilder::new().items(Ref::from_schema_name(name)).build(),
            ))),
        };
        let mut fine = ResponseBuilder::new().description("done");
        if let Some(schema) = schema {
            fine = fine.content("application/json", Content::new(Some(schema)));
        }
        operation = operation.response("200", fine.build());
        let kinds = [
            (RefusalKind::Malformed, "the request can not be right"),
            (RefusalKind::NotFound, "nothing has that name"),
            (RefusalKind::Conflict, "taken, in use, or already done"),
            (RefusalKind::Unavailable, "no manager, or no quorum"),
            (RefusalKind::Other, "refused"),
        ];
        for (kind, description) in kinds {
            let content = Content::new(Some(RefOr::Ref(Ref::from_schema_name("Refusal"))));
            let refused = ResponseBuilder::new()
                .description(description)
                .content("application/json", content)
                .build();
            operation = operation.response(kind.http_status().to_string(), refused);
        }
        all.add_path_operation(path, vec![method], operation.build());
    }
    api.paths = all;
    Json(api)
}
