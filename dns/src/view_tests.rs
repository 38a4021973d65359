//! Tests of the name table's view: what each asker sees.

use mesh_core::names::Listener;
use proptest::{collection::btree_map, prelude::*};

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn zone(network: &str, names: &[(&str, &str)]) -> Zone {
    Zone {
        network: network.into(),
        names: names
            .iter()
            .map(|(n, a)| ((*n).to_owned(), a.split_whitespace().map(ip).collect()))
            .collect(),
        reverse: names
            .iter()
            .flat_map(|(n, a)| a.split_whitespace().map(|a| (ip(a), (*n).to_owned())))
            .collect(),
    }
}

/// Networks 1 `Shop` and 2 `back` with a container on both and one on `back` alone; 3 `lab`, internal.
fn view() -> View {
    let [shop, back, lab] = [1, 2, 3].map(Id::from_bits);
    let listener = |network, forward| Listener {
        network,
        dev: "lo".into(),
        forward,
    };
    let zones = [
        (
            shop,
            zone(
                "Shop",
                &[("web", "10.1.0.2"), ("db", "10.1.0.3"), ("alias.of.web", "10.1.0.2"), ("empty", "")],
            ),
        ),
        (
            back,
            zone(
                "back",
                &[("db", "10.2.0.3"), ("tasks.db", "10.2.0.4 10.2.0.5"), ("web.shop", "10.2.0.9")],
            ),
        ),
        (lab, zone("lab", &[("secret", "10.3.0.2")])),
    ];
    let table = NameTable {
        listeners: [
            (ip("10.1.0.1"), listener(shop, true)),
            (ip("10.2.0.1"), listener(back, true)),
            (ip("10.3.0.1"), listener(lab, false)),
        ]
        .into(),
        zones: zones.into(),
        clients: [
            (ip("10.1.0.9"), vec![shop, back]),
            (ip("10.2.0.8"), vec![back]),
            (ip("10.3.0.8"), vec![lab]),
        ]
        .into(),
    };
    View::new(Arc::new(table), 1)
}

/// What a container at `asker` finds, as text.
fn find(view: &View, asker: &str, name: &str) -> String {
    let gateway = ip(if asker.starts_with("10.3") { "10.3.0.1" } else { "10.2.0.1" });
    let networks = view.networks_of(gateway, ip(asker));
    match view.name(networks, name) {
        Found::Addresses { addresses, .. } => addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Found::Unknown { .. } => "unknown".into(),
        Found::Outside => "outside".into(),
    }
}

#[test]
fn each_asker_sees_its_networks_names() {
    let view = view();
    let both = |name| find(&view, "10.1.0.9", name);
    assert_eq!(both("web"), "10.1.0.2");
    assert_eq!(both("db"), "10.1.0.3", "the first network's");
    assert_eq!(both("db.back"), "10.2.0.3");
    assert_eq!(both("db.shop"), "10.1.0.3", "network names match in any case");
    assert_eq!(both("tasks.db"), "10.2.0.4 10.2.0.5");
    assert_eq!(both("tasks.db.back"), "10.2.0.4 10.2.0.5");
    assert_eq!(both("alias.of.web"), "10.1.0.2");
    assert_eq!(both("alias.of.web.shop"), "10.1.0.2");
    assert_eq!(
        both("web.shop"),
        "10.2.0.9",
        "a name as it stands goes before one with its network's name"
    );
    for name in ["secret", "secret.lab", "nothing", "nothing.shop", "tasks.nothing", "a.b.c.lab"] {
        assert_eq!(both(name), "unknown", "{name}");
    }
    for name in ["example.com", "www.example.com", "shop.com", "", "tasks.example.com"] {
        assert_eq!(both(name), "outside", "{name}");
    }
    for name in ["empty", "tasks", "back", "shop", "tasks.back"] {
        assert_eq!(both(name), "", "{name} exists, without an address");
    }
    let one = |name| find(&view, "10.2.0.8", name);
    assert_eq!([one("db"), one("web"), one("db.shop")], ["10.2.0.3", "unknown", "unknown"]);
}

#[test]
fn a_stranger_sees_the_network_it_asks_in() {
    let view = view();
    assert_eq!(find(&view, "10.3.0.1", "secret"), "10.3.0.2");
    assert_eq!(find(&view, "192.0.2.1", "db"), "10.2.0.3");
    assert!(
        view.networks_of(ip("10.9.0.1"), ip("192.0.2.1")).is_empty(),
        "a gateway that is not in the table"
    );
}

#[test]
fn only_those_with_a_way_out_forward() {
    let view = view();
    let lab = [Id::from_bits(3)];
    let both = [Id::from_bits(3), Id::from_bits(1)];
    assert!(view.may_forward(ip("10.1.0.1"), &[Id::from_bits(1)]));
    assert!(!view.may_forward(ip("10.3.0.1"), &lab));
    assert!(
        view.may_forward(ip("10.3.0.1"), &both),
        "it has a way out through its other network"
    );
}

#[test]
fn addresses_have_names_only_for_those_on_the_network() {
    let view = view();
    let shop = [Id::from_bits(1)];
    assert_eq!(view.address(&shop, ip("10.1.0.3")), Owner::Name("db.Shop".into()));
    for hidden in ["10.2.0.3", "10.1.0.1", "10.3.0.8"] {
        assert_eq!(view.address(&shop, ip(hidden)), Owner::Unknown, "{hidden}");
    }
    assert_eq!(view.address(&shop, ip("192.0.2.1")), Owner::Outside);
}

#[test]
fn zone_labels_are_those_of_the_longest_network_name() {
    let id = Id::from_bits;
    let zones = [(id(1), zone("shop", &[])), (id(2), zone("eu.shop", &[("web", "10.0.0.2")]))];
    let view = View::new(
        Arc::new(NameTable {
            zones: zones.into(),
            ..NameTable::default()
        }),
        1,
    );
    assert_eq!(
        view.name(&[id(2)], "web.eu.shop"),
        Found::Addresses {
            addresses: &[ip("10.0.0.2")],
            zone_labels: 2
        }
    );
    assert_eq!(view.name(&[], "web.eu.shop"), Found::Unknown { zone_labels: 2 });
    assert_eq!(view.name(&[], "web.shop"), Found::Unknown { zone_labels: 1 });
}

proptest! {
    /// Whatever the table and the name: what is found is a name of the asker's networks, and nothing
    /// of another network's can be seen.
    #[test]
    fn nobody_sees_other_networks(
        zones in btree_map(1u64..5, ("[a-c]{1,2}", btree_map("[a-c]{1,2}(\\.[a-c])?", proptest::collection::vec(any::<[u8; 4]>(), 0..3), 0..6)), 0..4),
        networks in proptest::collection::vec(1u64..6, 0..4),
        name in "[a-c.]{0,6}",
    ) {
        let zones: BTreeMap<Id, Zone> = zones.into_iter().map(|(id, (network, names))| {
            let names = names.into_iter().map(|(n, a)| (n, a.into_iter().map(IpAddr::from).collect())).collect();
            (Id::from_bits(id), Zone { network, names, reverse: BTreeMap::new() })
        }).collect();
        let networks: Vec<Id> = networks.into_iter().map(Id::from_bits).collect();
        let table = Arc::new(NameTable { zones: zones.clone(), ..NameTable::default() });
        let view = View::new(table, 1);
        let visible = |name: &str| networks.iter().filter_map(|n| zones.get(n)).any(|z| {
            z.names.contains_key(name) || z.names.keys().any(|n| format!("{n}.{}", z.network) == name)
        });
        match view.name(&networks, &name) {
            Found::Addresses { addresses, .. } if !addresses.is_empty() => prop_assert!(visible(&name)),
            Found::Addresses { .. } => (),
            _ => prop_assert!(!visible(&name)),
        }
        let single = !name.is_empty() && !name.contains('.');
        let outside = view.name(&networks, &name) == Found::Outside;
        prop_assert!(!(single && outside), "a single label never leaves");
    }
}
