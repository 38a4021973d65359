//! Scenario 2: the subnet, the gateway and the address that were asked for.

use mesh_tests::{Lab, Place, Result};

#[test]
fn s2_chosen_addresses() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl(
        "h1",
        "network create kafka --driver overlay --subnet 172.30.0.0/16 --gateway 172.30.0.1",
    )?
    .ok()?;
    lab.echo("h2", "broker", "--network kafka --ip 172.30.5.5")?;
    lab.echo("h3", "other", "--network kafka")?;

    let network = lab.network("kafka")?;
    let [subnet] = &network.subnets[..] else {
        panic!("{:?}", network.subnets)
    };
    assert_eq!((subnet.subnet.as_str(), subnet.gateway.as_str()), ("172.30.0.0/16", "172.30.0.1"));
    let broker = network.endpoints.iter().find(|e| e.name == "broker").ok_or("no endpoint broker")?;
    assert_eq!((broker.ip.as_str(), broker.node.as_str()), ("172.30.5.5", "h2"));
    let other = network.endpoints.iter().find(|e| e.name == "other").ok_or("no endpoint other")?;
    assert!(other.ip.starts_with("172.30.") && other.ip != "172.30.0.1", "{other:?}");

    let addresses = lab.at(Place::In("broker"), "ip -4 addr show dev eth0")?.ok()?;
    assert!(addresses.contains("inet 172.30.5.5/16 "), "{addresses}");
    let routes = lab.at(Place::In("broker"), "ip -4 route")?.ok()?;
    assert!(routes.contains("default via 172.30.0.1 dev eth0"), "{routes}");

    let reply = lab.http(Place::In("other"), "172.30.5.5:80", 1)?.remove(0);
    assert_eq!((reply.hostname.as_str(), reply.client.as_str()), ("broker", other.ip.as_str()));
    lab.at(Place::In("broker"), "ping -n -c 1 -W 2 172.30.0.1")?.ok()?;
    Ok(())
}
