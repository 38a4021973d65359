//! service create, ls, inspect, ps, update, rm.

use mesh_api::rest::{ServiceUpdate, ServiceView, StateView, paths};
use mesh_core::{Refusal, spec::ServiceSpec};
use serde::Deserialize;

use super::{endpoint, inspect, made};
use crate::{
    args::service::{Create, Service, Update},
    failure::Failure,
    ports,
    render::Table,
    session::Session,
};

/// Carries a service command out.
pub async fn run(session: &Session, command: Service) -> Result<(), Failure> {
    match command {
        Service::Create(args) => create(session, args).await,
        Service::Ls => list(session).await,
        Service::Inspect { service } => inspect(session, &paths::at(paths::SERVICE, &service)).await,
        Service::Ps { service } => endpoint::list(session, &paths::at(paths::SERVICE_ENDPOINTS, &service)).await,
        Service::Update(args) => update(session, args).await,
        Service::Rm { services } => session.remove(&services, |n| paths::at(paths::SERVICE, n)).await,
    }
}

async fn create(session: &Session, args: Create) -> Result<(), Failure> {
    let spec = ServiceSpec {
        name: args.name,
        networks: args.networks,
        ports: args.ports,
        endpoint_mode: args.endpoint_mode,
        algorithm: args.lb,
        drain_secs: args.drain,
        affinity_secs: args.affinity,
        source_ranges: args.source_ranges,
        lb_return: args.lb_return,
        selector: args.selector.into_iter().collect(),
        labels: args.labels.into_iter().collect(),
    };
    spec.check()?;
    let value = session.post(paths::SERVICES, &spec).await?;
    made(session, &value)
}

async fn list(session: &Session) -> Result<(), Failure> {
    let value = session.get(paths::SERVICES).await?;
    session.answer(&value, |paint| {
        let mut table = Table::new(&["ID", "NAME", "MODE", "READY", "VIPS", "PORTS"]);
        for s in Vec::<ServiceView>::deserialize(&value)? {
            let ready = s.endpoints.iter().filter(|e| e.state == StateView::Ready).count();
            let vips: Vec<_> = s.vips.iter().flat_map(|v| v.ips()).map(|ip| ip.to_string()).collect();
            let ports: Vec<_> = s.ports.iter().map(ports::display).collect();
            let mode = serde_json::to_value(s.endpoint_mode)?.as_str().unwrap_or_default().to_owned();
            table.row(vec![
                s.id.to_string(),
                s.name,
                mode,
                format!("{ready}/{}", s.endpoints.len()),
                vips.join(","),
                ports.join(","),
            ]);
        }
        Ok(table.render(*paint))
    })
}

async fn update(session: &Session, args: Update) -> Result<(), Failure> {
    let path = paths::at(paths::SERVICE, &args.service);
    let name = args.service.clone();
    let changes = ServiceChanges::from(args)?;
    let view = ServiceView::deserialize(&session.get(&path).await?)?;
    let mut spec = view.spec();
    changes.apply(&mut spec)?;
    spec.check()?;
    let value = session
        .put(
            &path,
            &ServiceUpdate {
                version: view.version,
                spec,
            },
        )
        .await?;
    session.answer(&value, |_| Ok(format!("{name}\n")))
}

/// An update that changes something.
struct ServiceChanges(Update);

impl ServiceChanges {
    fn from(a: Update) -> Result<Self, Refusal> {
        let lists = a.publish_add.len()
            + a.publish_rm.len()
            + a.network_add.len()
            + a.network_rm.len()
            + a.source_range_add.len()
            + a.source_range_rm.len()
            + a.selector_add.len()
            + a.selector_rm.len()
            + a.label_add.len()
            + a.label_rm.len();
        let words = [a.endpoint_mode.is_some(), a.lb.is_some(), a.lb_return.is_some()];
        let times = [a.drain.is_some(), a.affinity.is_some()];
        if lists == 0 && !words.contains(&true) && !times.contains(&true) {
            return Err(Refusal::malformed(
                "nothing to change: see meshctl service update --help for what can be",
            ));
        }
        Ok(Self(a))
    }

    /// What is removed goes first, so that a port can be replaced in one step.
    fn apply(self, spec: &mut ServiceSpec) -> Result<(), Refusal> {
        let a = self.0;
        for wanted in &a.publish_rm {
            let before = spec.ports.len();
            spec.ports.retain(|p| !ports::matches(wanted, p));
            if spec.ports.len() == before {
                let text = format!(
                    "service {:?} does not publish target port {}/{}: see meshctl service inspect",
                    spec.name,
                    wanted.target,
                    wanted.protocol.as_str()
                );
                return Err(Refusal::not_found(text));
            }
        }
        for wanted in &a.network_rm {
            let before = spec.networks.len();
            spec.networks.retain(|n| !n.eq_ignore_ascii_case(wanted));
            if spec.networks.len() == before {
                return Err(Refusal::not_found(format!(
                    "service {:?} is not in network {wanted:?}: it is in {}",
                    spec.name,
                    spec.networks.join(", ")
                )));
            }
        }
        for network in a.network_add {
            if !spec.networks.iter().any(|n| n.eq_ignore_ascii_case(&network)) {
                spec.networks.push(network);
            }
        }
        for net in &a.source_range_rm {
            let before = spec.source_ranges.len();
            spec.source_ranges.retain(|r| r.net != *net);
            if spec.source_ranges.len() == before {
                return Err(Refusal::not_found(format!(
                    "service {:?} has no source range {net}: see meshctl service inspect",
                    spec.name
                )));
            }
        }
        for range in a.source_range_add {
            spec.source_ranges.retain(|r| r.net != range.net);
            spec.source_ranges.push(range);
        }
        for key in &a.selector_rm {
            if spec.selector.remove(key).is_none() {
                return Err(Refusal::not_found(format!(
                    "service {:?} does not select by label {key:?}: see meshctl service inspect",
                    spec.name
                )));
            }
        }
        spec.selector.extend(a.selector_add);
        for key in &a.label_rm {
            spec.labels.remove(key);
        }
        ports::add(spec, a.publish_add)?;
        spec.labels.extend(a.label_add);
        spec.endpoint_mode = a.endpoint_mode.unwrap_or(spec.endpoint_mode);
        spec.algorithm = a.lb.unwrap_or(spec.algorithm);
        spec.drain_secs = a.drain.unwrap_or(spec.drain_secs);
        spec.affinity_secs = a.affinity.unwrap_or(spec.affinity_secs);
        spec.lb_return = a.lb_return.unwrap_or(spec.lb_return);
        Ok(())
    }
}
