//! init, join, leave, token, status, doctor, events.

use std::pin::pin;

use mesh_api::rest::{Doctor, Event, InitReply, InitRequest, JoinReply, JoinRequest, LeaveRequest, Since, StatusView, TokenReply, paths};
use mesh_core::{Refusal, spec};
use serde::Deserialize;

use crate::{
    args::{
        Output,
        cluster::{Init, Join, Leave, Token},
    },
    failure::Failure,
    render,
    session::{Session, reader_gone},
};

/// Makes a cluster.
pub async fn init(session: &Session, args: Init) -> Result<(), Failure> {
    for pool in &args.default_addr_pools {
        spec::check_subnet(*pool)?;
        if let Some(size) = args.subnet_size.filter(|size| *size < pool.prefix_len()) {
            return Err(Refusal::malformed(format!(
                "pool {pool} holds no /{size}: use a --subnet-size of {} or more",
                pool.prefix_len()
            ))
            .into());
        }
    }
    let request = InitRequest {
        advertise_addr: args.advertise_addr,
        data_path_addr: args.data_path_addr,
        default_addr_pools: args.default_addr_pools,
        subnet_size: args.subnet_size,
    };
    let value = session.post(paths::CLUSTER_INIT, &request).await?;
    let reply = InitReply::deserialize(&value)?;
    if session.quiet {
        return session.print(&format!("{}\n", reply.cluster));
    }
    session.answer(&value, |_| {
        Ok(format!(
            "Cluster {} is made; this node, {} ({}), is its manager.\n\n{}\nFor another manager: meshctl token manager\n",
            reply.cluster,
            render::printable(&reply.hostname),
            reply.node,
            how_to_join("worker", &reply.worker_token, &reply.address)
        ))
    })
}

fn how_to_join(role: &str, token: &str, address: &str) -> String {
    format!("To add a {role} to this cluster, run on another host:\n\n    meshctl join --token {token} {address}\n")
}

/// Joins a cluster.
pub async fn join(session: &Session, args: Join) -> Result<(), Failure> {
    let request = JoinRequest {
        token: args.token,
        manager: args.manager,
        advertise_addr: args.advertise_addr,
        data_path_addr: args.data_path_addr,
    };
    let value = session.post(paths::CLUSTER_JOIN, &request).await?;
    let reply = JoinReply::deserialize(&value)?;
    if session.quiet {
        return session.print(&format!("{}\n", reply.node));
    }
    session.answer(&value, |_| {
        Ok(format!(
            "This node ({}) joined cluster {} as a {}.\n",
            reply.node,
            reply.cluster,
            reply.role.as_str()
        ))
    })
}

/// Leaves the cluster.
pub async fn leave(session: &Session, args: &Leave) -> Result<(), Failure> {
    let value = session.post(paths::CLUSTER_LEAVE, &LeaveRequest { force: args.force }).await?;
    session.answer(&value, |_| Ok("This node left the cluster.\n".to_owned()))
}

/// Shows or rotates a token.
pub async fn token(session: &Session, args: &Token) -> Result<(), Failure> {
    let role = args.role.as_str();
    let value = if args.rotate {
        session.post(&paths::at(paths::TOKEN_ROTATE, role), &()).await?
    } else {
        session.get(&paths::at(paths::TOKEN, role)).await?
    };
    let reply = TokenReply::deserialize(&value)?;
    if session.quiet {
        return session.print(&format!("{}\n", reply.token));
    }
    session.answer(&value, |_| Ok(how_to_join(role, &reply.token, &reply.address)))
}

/// Shows how this host is.
pub async fn status(session: &Session) -> Result<(), Failure> {
    let value = session.get(paths::STATUS).await?;
    let status = StatusView::deserialize(&value)?;
    if session.quiet {
        return session.print(&status.node.map(|n| format!("{}\n", n.id)).unwrap_or_default());
    }
    session.answer(&value, |paint| Ok(render::describe(&value, *paint)))
}

/// Checks what this host needs.
pub async fn doctor(session: &Session, plan: bool) -> Result<(), Failure> {
    let path = if plan {
        format!("{}?plan=true", paths::DOCTOR)
    } else {
        paths::DOCTOR.to_owned()
    };
    let value = session.get(&path).await?;
    let doctor = Doctor::deserialize(&value)?;
    session.answer(&value, |paint| {
        let mut table = render::Table::new(&["RESULT", "CHECK", "DETAIL"]);
        for check in &doctor.checks {
            table.row(vec![
                if check.ok { "ok" } else { "FAIL" }.to_owned(),
                check.name.clone(),
                check.detail.clone(),
            ]);
        }
        let mut text = table.render(*paint);
        if plan {
            text.push_str(&format!("\n{}\n", paint.bold("PLAN")));
            let none = ["nothing to do".to_owned()];
            let steps = if doctor.plan.is_empty() { &none[..] } else { &doctor.plan };
            steps
                .iter()
                .for_each(|step| text.push_str(&format!("{}\n", render::printable(step))));
        }
        Ok(text)
    })?;
    if doctor.checks.iter().all(|c| c.ok) {
        Ok(())
    } else {
        Err(Failure::Reported(1))
    }
}

/// Follows what happens.
pub async fn events(session: &Session, since: Option<Since>) -> Result<(), Failure> {
    let query = since
        .map(|s| format!("?since={}", paths::escape(&s.to_string())))
        .unwrap_or_default();
    let mut lines = session.lines(&format!("{}{query}", paths::EVENTS)).await?;
    let mut gone = pin!(reader_gone());
    while let Some(line) = tokio::select! {
        line = lines.next() => line?,
        () = &mut gone => return Err(Failure::ReaderGone),
    } {
        let event: Event = serde_json::from_str(&line)?;
        let text = match session.output {
            _ if session.quiet => event.id.to_string(),
            Output::Json => line,
            Output::Table => {
                let word = |v: serde_json::Value| v.as_str().unwrap_or_default().to_owned();
                let (action, kind) = (word(serde_json::to_value(event.action)?), word(serde_json::to_value(event.kind)?));
                format!(
                    "{}  {:>6}  {action:<6}  {kind:<8}  {}  {}",
                    event.time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"),
                    event.revision,
                    event.id,
                    render::printable(&event.name)
                )
            }
        };
        session.print(&format!("{text}\n"))?;
    }
    Err(Refusal::other("meshd ended the stream of events: is it stopping? (systemctl status meshd)").into())
}
