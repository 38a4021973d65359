//! The part of a cluster that some changes concern, so that what a change costs a host follows what
//! changed, and not what exists.
//!
//! The agent calls [`part`] when it knows that its host is as it must be but for some changes of the
//! objects. The part is a cluster of its own, twice: as it was and as it is. [`crate::intent::desired`] of
//! both, with the same facts, holds every row that the changes may add, change or remove, beside all rows
//! of the host's own networks; [`crate::plan::plan`] from what the host has of these rows
//! ([`crate::lb::Tables::those_of`]) to the second leads where a plan of everything would.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    Id,
    objects::{Change, Endpoint, Endpoints, Kind, Node, Object, Objects, Service},
};

/// So many objects that looking at everything is no worse.
const MANY: usize = 20_000;
/// So few endpoints that a part of them is never too large a part.
const FEW: usize = 500;

/// Which objects changed, with what each was before the first change; `None`: there was none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Touched {
    before: BTreeMap<(Kind, Id), Option<Object>>,
    everything: bool,
}

impl Touched {
    /// Any object may have changed.
    pub fn everything() -> Self {
        Self {
            before: BTreeMap::new(),
            everything: true,
        }
    }

    /// `change` is about to be applied to `objects`.
    pub fn note(&mut self, objects: &Objects, change: &Change) {
        if self.everything {
            return;
        }
        if self.before.len() == MANY {
            *self = Self::everything();
            return;
        }
        let (kind, id) = (change.kind, change.id);
        self.before.entry((kind, id)).or_insert_with(|| objects.get(kind, id));
    }

    /// What changed up to now, when `later` is what changed since.
    #[must_use]
    pub fn then(mut self, later: Self) -> Self {
        if self.everything || later.everything {
            return Self::everything();
        }
        for (key, before) in later.before {
            self.before.entry(key).or_insert(before);
        }
        if self.before.len() > MANY { Self::everything() } else { self }
    }

    /// The endpoints that changed, as they were.
    fn endpoints(&self) -> impl Iterator<Item = (Id, Option<&Arc<Endpoint>>)> {
        self.of(Kind::Endpoint, |object| match object {
            Object::Endpoint(e) => Some(e),
            _ => None,
        })
    }

    /// The services that changed, as they were.
    fn services(&self) -> impl Iterator<Item = (Id, Option<&Arc<Service>>)> {
        self.of(Kind::Service, |object| match object {
            Object::Service(s) => Some(s),
            _ => None,
        })
    }

    /// The objects of a kind that changed, as they were; `read` takes one for what its kind says.
    fn of<'a, T: 'a>(&'a self, kind: Kind, read: fn(&'a Object) -> Option<&'a T>) -> impl Iterator<Item = (Id, Option<&'a T>)> {
        let all = self.before.range((kind, Id::default())..);
        let its = all.take_while(move |((of, _), _)| *of == kind);
        its.map(move |((_, id), before)| (*id, before.as_ref().and_then(read)))
    }
}

/// Two small clusters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// As it was.
    pub before: Objects,
    /// As it is.
    pub after: Objects,
}

/// The part that `touched` concerns at node `me`, of the cluster that is `now`. `None`: that is about
/// everything, or most of it.
pub fn part(touched: &Touched, now: &Objects, me: Id) -> Option<Part> {
    if touched.everything {
        return None;
    }
    let (mut before, mut after) = (Objects::default(), Objects::default());
    (before.cluster, after.cluster) = (now.cluster.clone(), now.cluster.clone());
    (before.nodes, after.nodes) = (now.nodes.clone(), now.nodes.clone());
    (before.networks, after.networks) = (now.networks.clone(), now.networks.clone());
    // Networks that services have other rows for than before.
    let mut networks = BTreeSet::new();
    for ((kind, id), was) in &touched.before {
        match (kind, was) {
            (Kind::Cluster, _) => return None,
            (Kind::Node, Some(Object::Node(was))) if now.nodes.get(id).is_some_and(|is| serves_alike(was, is)) => {
                before.nodes.insert(*id, was.clone());
            }
            (Kind::Node, _) => return None,
            (Kind::Network, was) => {
                let was = match was {
                    Some(Object::Network(was)) => Some(was),
                    _ => None,
                };
                let is = now.networks.get(id);
                if was.is_some_and(|n| n.ingress) != is.is_some_and(|n| n.ingress) {
                    return None;
                }
                if was.map(|n| n.vni) != is.map(|n| n.vni) {
                    networks.insert(*id);
                }
                match was {
                    Some(was) => drop(before.networks.insert(*id, was.clone())),
                    None => drop(before.networks.remove(id)),
                }
            }
            (Kind::Service | Kind::Endpoint, _) => {}
        }
    }
    let scope = Scope::new(touched, now, me, networks)?;
    for id in &scope.services {
        now.services
            .get(id)
            .into_iter()
            .for_each(|s| drop(after.services.insert(s.clone())));
    }
    before.services.clone_from(&after.services);
    for (id, was) in touched.services() {
        match was {
            Some(was) => drop(before.services.insert(was.clone())),
            None => drop(before.services.remove(id)),
        }
    }
    after.endpoints = scope.endpoints;
    before.endpoints.clone_from(&after.endpoints);
    for (id, was) in touched.endpoints() {
        match was {
            Some(was) => drop(before.endpoints.insert(was.clone())),
            None => drop(before.endpoints.remove(id)),
        }
    }
    Some(Part { before, after })
}

/// Rows of services do not tell the two apart.
fn serves_alike(was: &Node, is: &Node) -> bool {
    let of = |n: &Node| (n.data_path_addr, n.underlay_mac, n.ingress_ip, n.dataplane, n.availability);
    of(was) == of(is)
}

/// The services and endpoints of a part.
struct Scope {
    services: BTreeSet<Id>,
    endpoints: Endpoints,
}

impl Scope {
    /// All services that the changes concern, with all of their members, and all that is on the networks of
    /// this host. `networks` are those that changed.
    fn new(touched: &Touched, now: &Objects, me: Id, mut networks: BTreeSet<Id>) -> Option<Self> {
        // The networks that are here, or were.
        let here = now.endpoints.on_node(me);
        let were = touched.endpoints().filter_map(|(_, was)| was).filter(|e| e.node == me);
        let local: BTreeSet<Id> = here.chain(were).map(|e| e.network).collect();
        networks.extend(&local);

        // Services that chose by labels, as they were.
        let formers = touched.services().filter_map(|(_, was)| was).map(AsRef::as_ref);
        let formers: Vec<&Service> = formers.filter(|s| !s.selector.is_empty()).collect();
        let near = networks.iter().flat_map(|n| now.services.in_network(*n));
        let mut services: BTreeSet<Id> = near.map(|s| s.id).collect();
        services.extend(touched.services().map(|(id, _)| id));
        for (id, was) in touched.endpoints() {
            for e in was.into_iter().chain(now.endpoints.get(&id)) {
                services.extend(served(e, now, &formers));
            }
        }
        loop {
            let are = services.iter().filter_map(|id| now.services.get(id)).map(AsRef::as_ref);
            let were = formers.iter().copied().filter(|s| services.contains(&s.id));
            let chosen: Vec<&Service> = are.filter(|s| !s.selector.is_empty()).chain(were).collect();
            let is_member = |e: &Endpoint| e.service.is_some_and(|s| services.contains(&s)) || chosen.iter().any(|s| s.has(e));
            let near = local.iter().flat_map(|n| now.endpoints.in_network(*n));
            let attached = services.iter().flat_map(|s| now.endpoints.of_service(*s));
            let selected = chosen.iter().flat_map(|s| now.members_of(s));
            let endpoints: Endpoints = near.chain(attached).chain(selected).cloned().collect();
            if endpoints.len() > FEW.max(now.endpoints.len() / 2) {
                return None;
            }
            // A row of a member that two services share stays as long as one of them has it.
            let mut shared = BTreeSet::new();
            if now.services.are_selecting() || !formers.is_empty() {
                let members = endpoints.values().filter(|e| is_member(e));
                shared.extend(members.flat_map(|e| served(e, now, &formers)));
            }
            if shared.is_subset(&services) {
                return Some(Self { services, endpoints });
            }
            services.extend(shared);
        }
    }
}

/// The services that an endpoint serves; `formers` are further ones that choose by labels.
fn served<'a>(e: &'a Endpoint, now: &'a Objects, formers: &'a [&Service]) -> impl Iterator<Item = Id> + 'a {
    let selecting = now.services.selecting_in(e.network).map(AsRef::as_ref);
    let by_label = selecting.chain(formers.iter().copied()).filter(|s| s.has(e)).map(|s| s.id);
    e.service.into_iter().chain(by_label)
}
