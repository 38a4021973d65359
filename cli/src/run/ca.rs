//! ca show, rotate.

use mesh_api::rest::{CaNode, CaView, paths};
use mesh_core::objects::NodeState;
use serde::Deserialize;

use crate::{
    args::ca::Ca,
    failure::Failure,
    render::{self, Table, printable},
    session::Session,
};

/// Carries a ca command out.
pub async fn run(session: &Session, command: &Ca) -> Result<(), Failure> {
    let value = match command {
        Ca::Show { .. } => session.get(paths::CA).await?,
        Ca::Rotate => session.post_patiently(paths::CA_ROTATE, &()).await?,
    };
    let view = CaView::deserialize(&value)?;
    if session.quiet {
        return session.print(&format!("{}\n", view.fingerprint));
    }
    match command {
        Ca::Show { pem: true } => session.print(&view.pem),
        Ca::Show { pem: false } => session.answer(&value, |paint| Ok(show(&view, *paint))),
        Ca::Rotate => session.answer(&value, |_| Ok(rotated(&view))),
    }
}

fn show(view: &CaView, paint: render::Paint) -> String {
    let mut text = String::new();
    let mut line = |title: &str, value: &str| text.push_str(&format!("{} {value}\n", paint.bold(&format!("{title:<12}"))));
    line("fingerprint:", &view.fingerprint);
    line("subject:", &printable(&view.subject));
    line("valid from:", &view.not_before.to_string());
    line("valid to:", &view.not_after.to_string());
    for former in &view.former {
        line("former root:", &format!("{}, replaced {}", former.fingerprint, former.replaced_at));
    }
    let mut table = Table::new(&["NODE", "STATUS", "CERTIFICATE"]);
    for n in &view.nodes {
        let certificate = if n.renewed {
            "of this root"
        } else {
            "not known to be of this root"
        };
        table.row(vec![n.hostname.clone(), state(n).to_owned(), certificate.to_owned()]);
    }
    format!("{text}\n{}", table.render(paint))
}

fn rotated(view: &CaView) -> String {
    let all = view.nodes.len();
    let missing: Vec<_> = view.missing().collect();
    let former = match missing.as_slice() {
        _ if view.former.is_empty() => "the former root is trusted no more.".to_owned(),
        [] => "the former root is about to be forgotten: see meshctl ca show.".to_owned(),
        missing => {
            let names: Vec<_> = missing
                .iter()
                .map(|n| format!("{} ({})", printable(&n.hostname), state(n)))
                .collect();
            format!(
                "the former root stays trusted until these have one, too, or are removed (meshctl node rm): {}.",
                names.join(", ")
            )
        }
    };
    format!(
        "The cluster has a new root: {}\n{} of {all} nodes have a certificate of it; {former}\nThe join tokens are new, those from before join nobody: meshctl token worker, meshctl token manager.\n",
        view.fingerprint,
        all - missing.len()
    )
}

fn state(node: &CaNode) -> &'static str {
    match node.state {
        NodeState::Ready => "ready",
        NodeState::Down => "down",
        NodeState::Unknown => "unknown",
    }
}
