//! network create, ls, inspect, rm, prune, connect, disconnect.

use mesh_api::rest::{DisconnectRequest, EndpointView, NetworkView, PruneReply, paths};
use mesh_core::spec::{NetworkSpec, check_name};
use serde::Deserialize;

use super::{inspect, made};
use crate::{
    args::{
        Output,
        network::{Connect, Create, Network},
    },
    failure::Failure,
    render::{self, Table},
    session::Session,
};

/// Carries a network command out.
pub async fn run(session: &Session, command: Network) -> Result<(), Failure> {
    match command {
        Network::Create(args) => create(session, args).await,
        Network::Ls => list(session).await,
        Network::Inspect { network } => inspect(session, &paths::at(paths::NETWORK, &network)).await,
        Network::Rm { networks } => session.remove(&networks, |n| paths::at(paths::NETWORK, n)).await,
        Network::Prune => {
            let value = session.post(paths::NETWORKS_PRUNE, &()).await?;
            let reply = PruneReply::deserialize(&value)?;
            match session.output {
                // Their names are all that is left of them, also with -q.
                Output::Table => session.print(&reply.removed.iter().map(|n| format!("{n}\n")).collect::<String>()),
                Output::Json => session.print(&render::json(&value)?),
            }
        }
        Network::Connect(args) => connect(session, args).await,
        Network::Disconnect(args) => {
            let request = DisconnectRequest {
                container: args.container,
                force: args.force,
            };
            let value = session
                .post_patiently(&paths::at(paths::NETWORK_DISCONNECT, &args.network), &request)
                .await?;
            session.answer(&value, |_| Ok(String::new()))
        }
    }
}

async fn create(session: &Session, args: Create) -> Result<(), Failure> {
    let spec = NetworkSpec {
        name: args.name,
        driver: args.driver,
        subnets: args.subnets,
        gateways: args.gateways,
        ip_ranges: args.ip_ranges,
        aux_addresses: args.aux_addresses.into_iter().collect(),
        ipv6: args.ipv6,
        internal: args.internal,
        attachable: args.attachable,
        options: args.options.into_iter().collect(),
        labels: args.labels.into_iter().collect(),
    };
    spec.check()?;
    let value = session.post(paths::NETWORKS, &spec).await?;
    made(session, &value)
}

async fn list(session: &Session) -> Result<(), Failure> {
    let value = session.get(paths::NETWORKS).await?;
    session.answer(&value, |paint| {
        let mut table = Table::new(&["ID", "NAME", "DRIVER", "VNI", "SUBNETS", "USED", "FREE", "ENDPOINTS"]);
        for n in Vec::<NetworkView>::deserialize(&value)? {
            let subnets: Vec<_> = n.subnets.iter().map(|s| s.subnet.to_string()).collect();
            let used: u64 = n.subnets.iter().map(|s| s.used).sum();
            let free = n.subnets.iter().fold(0u64, |sum, s| sum.saturating_add(s.free));
            let numbers = [used.to_string(), free.to_string(), n.endpoints.len().to_string()];
            table.row(
                [n.id.to_string(), n.name, n.driver, n.vni.to_string(), subnets.join(",")]
                    .into_iter()
                    .chain(numbers)
                    .collect(),
            );
        }
        Ok(table.render(*paint))
    })
}

async fn connect(session: &Session, args: Connect) -> Result<(), Failure> {
    args.attach.check()?;
    if let Some(hostname) = &args.hostname {
        check_name("endpoint", hostname)?;
    }
    let request = args.attach.request(args.container, args.hostname, args.ifname);
    let value = session.post(&paths::at(paths::NETWORK_CONNECT, &args.network), &request).await?;
    session.answer(&value, |_| Ok(format!("{}\n", EndpointView::deserialize(&value)?.ip)))
}
