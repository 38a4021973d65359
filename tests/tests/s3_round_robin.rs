//! Scenario 3: a published port answers on every node, by turns, and backends see who asks.

use mesh_tests::{BACKENDS, Lab, Place, Reply, Result, address, tally, until};

const HOSTS: [&str; 4] = ["h1", "h2", "h3", "h4"];

#[test]
fn s3_round_robin() -> Result<()> {
    let lab = Lab::up("--nodes 4")?;
    lab.ctl("h1", "network create demo --driver overlay")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name hostname --network demo --publish 8888:80 --publish 8888:7/udp",
    )?
    .ok()?;
    nobody_there(&lab)?;
    lab.backends("demo", "hostname")?;
    lab.balanced(&HOSTS, 8888, &BACKENDS)?;
    for host in HOSTS {
        let to = format!("{}:8888", address(host));
        in_turn(&format!("http to {host}"), &lab.http(Place::Client, &to, 30)?);
        in_turn(&format!("udp to {host}"), &lab.udp(Place::Client, &to, 30)?);
        one_flow_one_backend(&lab, &to)?;
    }
    Ok(())
}

/// A service without endpoints refuses at once, on every node.
fn nobody_there(lab: &Lab) -> Result<()> {
    for host in HOSTS {
        until(10, &format!("{host} to refuse connections to a service without endpoints"), || {
            let asked = lab.at(Place::Client, &format!("meshd-echo client http {}:8888", address(host)))?;
            Ok(asked.err.contains("refused"))
        })?;
        let asked = lab.at(Place::Client, &format!("meshd-echo client udp {}:8888", address(host)))?;
        assert!(asked.err.contains("refused"), "{asked:?}");
    }
    Ok(())
}

fn in_turn(asked: &str, replies: &[Reply]) {
    assert_eq!(replies.len(), 30);
    let order: Vec<_> = replies.iter().map(|r| r.hostname.as_str()).collect();
    assert!(tally(replies).values().eq([10, 10, 10].iter()), "{asked}: {order:?}");
    assert!(
        order.iter().zip(&order[3..]).all(|(a, b)| a == b),
        "{asked}, not in turn: {order:?}"
    );
    for reply in replies {
        assert_eq!(reply.client, "192.168.77.200", "{asked}: {reply:?}");
    }
}

/// Datagrams of one flow stay together.
fn one_flow_one_backend(lab: &Lab, to: &str) -> Result<()> {
    let out = lab
        .at(Place::Client, &format!("meshd-echo client udp {to} --count 10 --same-socket"))?
        .ok()?;
    let mut lines: Vec<_> = out.lines().collect();
    lines.dedup();
    assert_eq!(lines.len(), 1, "{out}");
    Ok(())
}
