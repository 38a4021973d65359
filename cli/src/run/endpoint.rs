//! endpoint ls, inspect, update; also the list of `service ps`.

use mesh_api::rest::{EndpointPatch, EndpointView, paths};
use serde::Deserialize;

use super::inspect;
use crate::{args::endpoint::Endpoint, failure::Failure, render::Table, session::Session};

/// Carries an endpoint command out.
pub async fn run(session: &Session, command: Endpoint) -> Result<(), Failure> {
    match command {
        Endpoint::Ls => list(session, paths::ENDPOINTS).await,
        Endpoint::Inspect { endpoint } => inspect(session, &paths::at(paths::ENDPOINT, &endpoint)).await,
        Endpoint::Update { endpoint, state, weight } => {
            let value = session
                .patch(&paths::at(paths::ENDPOINT, &endpoint), &EndpointPatch { state, weight })
                .await?;
            session.answer(&value, |_| Ok(format!("{endpoint}\n")))
        }
    }
}

/// Prints the endpoints behind `path`.
pub async fn list(session: &Session, path: &str) -> Result<(), Failure> {
    let value = session.get(path).await?;
    session.answer(&value, |paint| {
        let mut table = Table::new(&["ID", "NAME", "NODE", "NETWORK", "ADDRESS", "SERVICE", "WEIGHT", "STATE"]);
        for e in Vec::<EndpointView>::deserialize(&value)? {
            let ips: Vec<_> = e.ips().map(|ip| ip.to_string()).collect();
            let service = e.service.unwrap_or_default();
            table.row(vec![
                e.id.to_string(),
                e.name,
                e.node,
                e.network,
                ips.join(","),
                service,
                e.weight.to_string(),
                e.state.as_str().to_owned(),
            ]);
        }
        Ok(table.render(*paint))
    })
}
