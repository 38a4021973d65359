use std::sync::Arc;

use mesh_core::objects::{FormerRoot, Role};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
};
use rustls_pki_types::UnixTime;

use super::*;
use crate::tls;

fn cluster() -> Cluster {
    let ca = Authority::create(Id::from_bits(1)).unwrap();
    serde_json::from_value(serde_json::json!({
        "id": Id::from_bits(1), "version": 1, "created_at": "2026-01-01T00:00:00Z", "address_pools": [], "subnet_prefix": 24,
        "ca_cert": ca.cert_pem(), "ca_key": ca.key_pem(), "worker_secret": "", "manager_secret": "", "next_vni": 1, "next_slot": 1,
    }))
    .unwrap()
}

fn rotated(cluster: &Cluster) -> Cluster {
    let new = next(cluster).unwrap();
    let mut after = cluster.clone();
    after.version += 1;
    after.former_roots.insert(
        0,
        FormerRoot {
            cert: std::mem::replace(&mut after.ca_cert, new.cert),
            cross: new.cross,
            replaced_at: Timestamp::UNIX_EPOCH,
        },
    );
    after.ca_key = new.key;
    after
}

/// What a node of the cluster shows, PEM.
fn shown(cluster: &Cluster) -> String {
    let ca = Authority::load(cluster.id, &cluster.ca_cert, &cluster.ca_key).unwrap();
    let csr = pki::signing_request(&pki::new_key().unwrap()).unwrap();
    chain(cluster, &ca.sign(&csr, Id::from_bits(2), Role::Manager, 0).unwrap()) + &cluster.ca_cert
}

fn trusts(bundle: &str, shown: &str) -> bool {
    let mut store = RootCertStore::empty();
    for root in pki::certificates(bundle).unwrap() {
        store.add(root).unwrap();
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), tls::provider())
        .build()
        .unwrap();
    let all = pki::certificates(shown).unwrap();
    let name = tls::server_name(Id::from_bits(1));
    verifier.verify_server_cert(&all[0], &all[1..], &name, &[], UnixTime::now()).is_ok()
}

#[test]
fn old_and_new_trust_each_other_until_the_old_is_forgotten() {
    let first = cluster();
    let second = rotated(&first);
    let third = rotated(&second);
    for (a, b) in [(&first, &second), (&second, &third), (&first, &third)] {
        assert!(trusts(&bundle(a), &shown(b)), "who was away follows the signatures");
        assert!(trusts(&bundle(b), &shown(a)), "who was away is still trusted");
    }
    let mut settled = third.clone();
    settled.former_roots.clear();
    assert!(trusts(&bundle(&third), &shown(&settled)) && trusts(&bundle(&settled), &shown(&third)));
    assert!(
        !trusts(&bundle(&settled), &shown(&first)),
        "a certificate of the old root is worth nothing then"
    );
    assert!(!trusts(&bundle(&settled), &shown(&second)));
    assert!(!trusts(&bundle(&first), &shown(&settled)), "nothing leads there any more");
    let stranger = cluster();
    assert!(!trusts(&bundle(&third), &shown(&stranger)) && !trusts(&bundle(&stranger), &shown(&third)));
}

#[test]
fn a_former_root_goes_when_every_node_knows_the_new_one_or_nobody_can() {
    let before = cluster();
    let mut after = rotated(&before);
    after.former_roots[0].replaced_at = "2026-01-01T00:00:00Z".parse().unwrap();
    let node = |n: u64| {
        let node: mesh_core::objects::Node = serde_json::from_value(serde_json::json!({
            "id": Id::from_bits(n), "version": 1, "created_at": "2026-01-01T00:00:00Z", "hostname": format!("h{n}"), "labels": {},
            "role": "worker", "raft_id": 0, "availability": "active", "addr": "192.0.2.1", "control_port": 2377,
            "data_path_addr": "192.0.2.1", "underlay_mtu": 1500, "ingress_ip": "10.0.0.2", "host_routes": [],
            "state": "ready", "dataplane": "reachable",
        }))
        .unwrap();
        (node.id, Arc::new(node))
    };
    let all = Objects {
        cluster: Some(Arc::new(after.clone())),
        nodes: [node(1), node(2)].into(),
        ..Objects::default()
    };
    let (old, new) = (fingerprint(&before.ca_cert).unwrap(), fingerprint(&after.ca_cert).unwrap());
    assert_ne!(old, new);
    assert_ne!(digest(&bundle(&before)).unwrap(), digest(&bundle(&after)).unwrap());
    let soon = "2026-01-02T00:00:00Z".parse().unwrap();
    let said = |a: &str, b: &str| BTreeMap::from([(Id::from_bits(1), a.to_owned()), (Id::from_bits(2), b.to_owned())]);
    assert!(forgettable(&all, &said(&new, &old), soon).is_empty());
    assert!(
        forgettable(&all, &BTreeMap::from([(Id::from_bits(1), new.clone())]), soon).is_empty(),
        "one was not heard"
    );
    assert_eq!(forgettable(&all, &said(&new, &new), soon), std::slice::from_ref(&before.ca_cert));
    let late = "2026-04-02T00:00:00Z".parse().unwrap();
    assert_eq!(forgettable(&all, &said(&new, &old), late), std::slice::from_ref(&before.ca_cert));
    assert_eq!(known_by(&after, &said(&new, &old)), [Id::from_bits(1)].into());
}
