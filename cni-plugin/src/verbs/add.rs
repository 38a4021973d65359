//! ADD: attaches the container to every network of the configuration, or to none.
//!
//! meshd answers once packets, names and balancing work. What an ADD left that was killed half way is
//! taken up: its endpoints carry the same labels.

use std::{
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use mesh_api::rest::{AttachRequest, AttachmentView, BandwidthView, ConnectRequest, StateView};
use mesh_core::{RefusalKind, labels::POD_NAMESPACE, objects::Labels};
use nix::sys::statfs::{self, FsType};
use serde_json::Value;

use crate::{
    call::{Args, Call},
    config::{Config, Document},
    failure::Failure,
    http::Error,
    meshd::Meshd,
    naming::{attachment_labels, endpoint_name, pod_labels, qualified_name},
    note,
    result::Dns,
    turn::{self, pause},
};

/// All of an ADD. meshd itself gives an attachment up after 10 s.
const TIME: Duration = Duration::from_secs(30);
/// Taking back what was made, after that.
const UNDO_TIME: Duration = Duration::from_secs(5);
/// How long an earlier call for the same container may go on.
const TURN_TIME: Duration = Duration::from_secs(15);
/// Between two looks at an endpoint that is under way.
const PAUSE: Duration = Duration::from_millis(20);

/// Attaches, and gives the result.
pub fn add(call: &Call, document: Document) -> Result<Value, Failure> {
    let args = Args::parse(&call.args)?;
    let config = document.config(&args)?;
    let inode = namespace(&call.netns)?;
    let meshd = Meshd::new(&config.head.socket, TIME);
    let _turn = match turn::take(&config.head.socket, &call.container, Instant::now() + TURN_TIME) {
        Ok(turn) => Some(turn),
        Err(e @ turn::Error::Taken) => return Err(Failure::TryAgain(e.to_string())),
        // Without a directory for the lock there is no meshd either, which is about to be seen.
        Err(turn::Error::File(_)) => None,
    };
    let add = Add {
        call,
        args: &args,
        config: &config,
        meshd: &meshd,
        own: attachment_labels(&config.head.name, &call.container, &call.ifname),
        inode,
    };
    let views = add.attach_all()?;
    let version = config.head.version;
    let mut outcome = config.prev.clone().unwrap_or_default();
    outcome.attached(&views, &call.netns);
    outcome.dns = config.dns.clone().over(resolver(&views, std::mem::take(&mut outcome.dns)));
    outcome.document(version).map_err(|source| Failure::Decode {
        what: "the result",
        source,
    })
}

/// The gateways answer DNS. Names of the mesh have no domain to search, so that one without a dot is
/// asked as it is.
fn resolver(views: &[AttachmentView], prev: Dns) -> Dns {
    let gateways = views.iter().flat_map(|v| v.endpoint.gateway.into_iter().chain(v.endpoint.gateway6));
    let mut nameservers: Vec<String> = gateways.map(|g| g.to_string()).collect();
    nameservers.extend(prev.nameservers.iter().cloned());
    let plain = prev.options.is_empty() && prev.search.is_empty() && prev.domain.is_none();
    let options = if plain { vec!["ndots:0".to_owned()] } else { prev.options };
    Dns {
        nameservers,
        options,
        ..prev
    }
}

/// The inode of the container's network namespace.
fn namespace(path: &str) -> Result<u64, Failure> {
    let wrong = |why: &str| Failure::Environment(format!("CNI_NETNS {path:?} {why}"));
    let is_namespace = match statfs::statfs(path) {
        Ok(fs) => fs.filesystem_type() == FsType(statfs::NSFS_MAGIC.0),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR | nix::errno::Errno::ESRCH) => {
            return Err(Failure::UnknownContainer(format!("network namespace {path:?} does not exist")));
        }
        Err(e) => return Err(wrong(&format!("cannot be opened: {e}"))),
    };
    if !is_namespace {
        return Err(wrong("is not a network namespace"));
    }
    let id = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino()));
    let (dev, inode) = id(path).map_err(|e| wrong(&format!("cannot be opened: {e}")))?;
    if id("/proc/self/ns/net").is_ok_and(|own| own == (dev, inode)) {
        return Err(wrong("is the host's own: a container needs one of its own"));
    }
    Ok(inode)
}

struct Add<'a> {
    call: &'a Call,
    args: &'a Args,
    config: &'a Config,
    meshd: &'a Meshd,
    /// The labels that tell this attachment from all others.
    own: Labels,
    /// Of the container's namespace.
    inode: u64,
}

/// What became of one network.
enum Made {
    /// By this call, or by one that was killed.
    New(AttachmentView),
    /// It was all there.
    Before(AttachmentView),
}

impl Add<'_> {
    fn attach_all(&self) -> Result<Vec<AttachmentView>, Failure> {
        let (mut views, mut new) = (Vec::new(), 0);
        for request in self.requests() {
            match self.attach(request) {
                Ok(Made::New(view)) => {
                    new += 1;
                    views.push(view);
                }
                Ok(Made::Before(view)) => views.push(view),
                Err(failure) => {
                    // A refusal has changed nothing.
                    if new > 0 || !matches!(failure, Failure::Refused(_)) {
                        self.undo();
                    }
                    return Err(self.told(failure));
                }
            }
        }
        if new == 0 {
            return Err(Failure::AlreadyAttached {
                container: self.call.container.clone(),
                ifname: self.call.ifname.clone(),
            });
        }
        Ok(views)
    }

    /// A container that ended meanwhile is the reason for whatever came of it.
    fn told(&self, failure: Failure) -> Failure {
        match namespace(&self.call.netns) {
            Ok(inode) if inode == self.inode => failure,
            _ => Failure::UnknownContainer(format!("it ended while it was being attached ({failure})")),
        }
    }

    fn undo(&self) {
        if let Err(e) = Meshd::new(&self.config.head.socket, UNDO_TIME).detach(self.own.clone()) {
            note(&format!("what was attached could not be detached: {e}"));
        }
    }

    /// One request for each network. The first gets CNI_IFNAME and what was asked for.
    fn requests(&self) -> Vec<AttachRequest> {
        let config = self.config;
        let taken = config.prev.iter().flat_map(|p| &p.interfaces);
        let taken = taken.filter(|i| i.sandbox.as_deref().is_some_and(|s| !s.is_empty()));
        let mut taken: Vec<String> = taken.map(|i| i.name.clone()).collect();
        let mut labels = config.labels.clone();
        labels.extend(pod_labels(self.args));
        labels.extend(self.own.clone());
        let request = |(i, network): (usize, &String)| {
            let ifname = free_name(&self.call.ifname, &taken);
            taken.push(ifname.clone());
            let first = i == 0;
            AttachRequest {
                network: network.clone(),
                connect: ConnectRequest {
                    container: format!("netns:{}", self.call.netns),
                    service: config.service.clone(),
                    ip: config.ip.filter(|_| first),
                    ip6: config.ip6.filter(|_| first),
                    mac: config.mac.filter(|_| first),
                    aliases: config.aliases.clone(),
                    labels: labels.clone(),
                    ports: if first { config.ports.clone() } else { Vec::new() },
                    hostname: Some(endpoint_name(self.call, self.args)),
                    ifname: Some(ifname),
                    bandwidth: config.bandwidth.map(BandwidthView::from),
                },
            }
        };
        config.networks.iter().enumerate().map(request).collect()
    }

    fn attach(&self, mut request: AttachRequest) -> Result<Made, Failure> {
        // An endpoint that was under way though no call for this container is: it was asked for by one
        // that was killed before it could report.
        let mut orphan = false;
        // Whether what was in the way may have ended before it was asked for, such as what the container's former
        // namespace had: to be found out once.
        let mut again = true;
        loop {
            let refusal = match self.meshd.attach(&request) {
                Ok(view) => return Ok(Made::New(view)),
                Err(Error::Refused(r)) if r.kind == RefusalKind::Conflict => r,
                Err(e) => return Err(e.into()),
            };
            let ifname = request.connect.ifname.as_deref();
            let own = self.meshd.attachments(&self.own, false)?;
            let Some(view) = own.into_iter().find(|v| Some(v.endpoint.ifname.as_str()) == ifname) else {
                if orphan {
                    // Gone meanwhile.
                    orphan = false;
                    continue;
                }
                if let Some(name) = self.other_name(&request)? {
                    request.connect.hostname = Some(name);
                    continue;
                }
                if std::mem::take(&mut again) {
                    continue;
                }
                return Err(Failure::Refused(refusal));
            };
            if view.inode != self.inode {
                // The container was started anew without a DEL: that one has ended.
                self.meshd.detach(self.own.clone())?;
            } else if view.endpoint.state == StateView::Starting {
                orphan = true;
                if Instant::now() + PAUSE >= self.meshd.deadline() {
                    return Err(Failure::TryAgain("an earlier ADD of this container has not ended".to_owned()));
                }
                pause(PAUSE);
            } else if orphan {
                return Ok(Made::New(view));
            } else {
                return Ok(Made::Before(view));
            }
        }
    }

    /// Another name for a pod whose own is that of a pod of another namespace; `None` when that is not
    /// what is in the way.
    fn other_name(&self, request: &AttachRequest) -> Result<Option<String>, Failure> {
        let asked = request.connect.hostname.as_deref().unwrap_or_default();
        let Some(name) = qualified_name(self.args).filter(|n| n != asked) else {
            return Ok(None);
        };
        let network = self.meshd.network(&request.network)?;
        let Some(holder) = network.endpoints.iter().find(|e| e.name.eq_ignore_ascii_case(asked)) else {
            return Ok(None);
        };
        let holder = self.meshd.endpoint(&holder.id.to_string())?;
        let same = holder.labels.get(POD_NAMESPACE) == self.args.pod_namespace.as_ref();
        Ok((!same).then_some(name))
    }
}

/// `wanted`, or the next name of its kind that is not taken.
fn free_name(wanted: &str, taken: &[String]) -> String {
    let stem = wanted.trim_end_matches(|c: char| c.is_ascii_digit());
    let first: u64 = wanted[stem.len()..].parse().unwrap_or(0);
    let others = (first + 1..).map(|n| format!("{stem}{n}"));
    let mut names = std::iter::once(wanted.to_owned()).chain(others);
    names.find(|n| !taken.contains(n)).unwrap_or_else(|| wanted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_interfaces_count_on() {
        let taken = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        assert_eq!(free_name("eth0", &[]), "eth0");
        assert_eq!(free_name("eth0", &taken(&["eth0", "eth1", "lo"])), "eth2");
        assert_eq!(free_name("net", &taken(&["net"])), "net1");
        assert_eq!(free_name("999999999999999", &taken(&["999999999999999"])), "1000000000000000");
    }

    #[test]
    fn only_namespaces_of_others_are_attached() {
        assert_eq!(namespace("/no/such").unwrap_err().code(), 3);
        assert_eq!(namespace("/proc/4194304/ns/net").unwrap_err().code(), 3);
        for wrong in ["/etc/hostname", "/proc/self/ns/net", "/"] {
            assert_eq!(namespace(wrong).unwrap_err().code(), 4, "{wrong}");
        }
    }
}
