//! BEHAVIOURS.md, those that the main job rests on and that no scenario shows: a test each, on the lab.

use std::time::{Duration, Instant};

use mesh_tests::{Lab, Place, Result, address, until, within};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Where an endpoint of a network is.
fn ip(lab: &Lab, network: &str, name: &str) -> Result<String> {
    Ok(lab.endpoint(network, name)?.ip)
}

/// What a name resolves to in a container; nothing when it does not.
fn resolve(lab: &Lab, container: &str, name: &str) -> Result<Vec<String>> {
    let done = lab.at(Place::In(container), &format!("meshd-echo client resolve {name}"))?;
    let mut found: Vec<_> = if done.status == 0 {
        done.out.lines().map(str::to_owned).collect()
    } else {
        Vec::new()
    };
    found.sort();
    found.dedup();
    Ok(found)
}

/// Every link, forwarding entry, route and neighbour of a host, with `needle` in it.
fn traces(lab: &Lab, host: &str, needle: &str) -> Result<String> {
    let mut seen = String::new();
    for command in ["ip -o link", "ip -o addr", "ip route", "ip neigh", "bridge fdb", "nft list ruleset"] {
        let out = lab.at(Place::Host(host), command)?.ok()?;
        seen.extend(out.lines().filter(|l| l.contains(needle)).map(|l| format!("{l}\n")));
    }
    Ok(seen)
}

#[test]
fn b02_a_failed_attach_gives_everything_back() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --subnet 172.30.0.0/24")?.ok()?;
    lab.container("h2", "far", "--network demo")?;
    lab.container("h1", "user", "--network demo")?;
    lab.ctl("h1", "network create more --subnet 172.31.0.0/24")?.ok()?;
    // The container has an interface of that name, of which the cluster knows nothing.
    lab.at(Place::In("user"), "ip link add mine0 type veth peer name mine1")?.ok()?;
    let links = lab.at(Place::Host("h1"), "ip -o -br link")?.ok()?;
    lab.ctl("h1", "network connect --ifname mine0 --hostname second more netns:user")?
        .refused(1, &["mine0"])?;
    assert_eq!(lab.network("more")?.endpoints.len(), 0, "no record");
    until(5, "the host to be as before", || {
        Ok(lab.at(Place::Host("h1"), "ip -o -br link")?.ok()?.lines().count() == links.lines().count())
    })?;
    for host in HOSTS {
        until(10, &format!("{host} to have nothing of it"), || {
            Ok(traces(&lab, host, "172.31.0.")?.is_empty())
        })?;
    }
    assert!(resolve(&lab, "user", "second")?.is_empty(), "no name");
    // Name and container can be used again at once.
    lab.ctl("h1", "network connect --hostname second more netns:user")?.ok()?;
    assert_eq!(resolve(&lab, "user", "second")?, [ip(&lab, "more", "second")?]);
    Ok(())
}

#[test]
fn b03_a_released_address_rests_and_its_new_owner_is_reached() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --subnet 172.30.0.0/24")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h2", "old", "--network demo")?;
    let released = ip(&lab, "demo", "old")?;
    lab.settled(&HOSTS)?;
    assert_eq!(lab.http(Place::In("user"), &format!("{released}:80"), 1)?[0].hostname, "old");
    lab.lab(&["stop", "old"])?.ok()?;
    lab.echo("h2", "next", "--network demo")?;
    assert_ne!(ip(&lab, "demo", "next")?, released, "not handed out again at once");
    // Asked for by name it is, on another host; nobody's old neighbour entry is in the way.
    lab.echo("h3", "new", &format!("--network demo --ip {released}"))?;
    until(10, "the new owner to be reached", || {
        let done = lab.at(Place::In("user"), &format!("meshd-echo client http {released}:80 --timeout 1"))?;
        Ok(done.out.contains("\"new\""))
    })
}

#[test]
fn b04_a_recreated_network_has_nothing_of_the_old() -> Result<()> {
    let lab = Lab::up("")?;
    for (subnet, gone) in [("172.30.0.0/24", "172.31.0."), ("172.31.0.0/24", "172.30.0.")] {
        lab.ctl("h1", &format!("network create demo --subnet {subnet}"))?.ok()?;
        lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
        for (host, name) in HOSTS.iter().zip(["w1", "w2", "w3"]) {
            lab.echo(host, name, "--network demo --service web")?;
        }
        lab.balanced(&HOSTS, 8080, &["w1", "w2", "w3"])?;
        for host in HOSTS {
            assert_eq!(traces(&lab, host, gone)?, "", "on {host}");
        }
        let found = resolve(&lab, "w1", "tasks.web")?;
        assert!(found.len() == 3 && found.iter().all(|ip| !ip.starts_with(gone)), "{found:?}");
        for name in ["w1", "w2", "w3"] {
            lab.lab(&["stop", name])?.ok()?;
        }
        lab.ctl("h1", "service rm web")?.ok()?;
        lab.ctl("h1", "network rm demo")?.ok()?;
    }
    Ok(())
}

#[test]
fn b05_an_alias_lives_as_long_as_someone_claims_it() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.container("h2", "a", "--network demo --alias cache")?;
    lab.container("h3", "b", "--network demo --alias cache")?;
    let mut both = [ip(&lab, "demo", "a")?, ip(&lab, "demo", "b")?];
    both.sort();
    until(5, "both to be found", || Ok(resolve(&lab, "user", "cache")? == both))?;
    lab.lab(&["stop", "a"])?.ok()?;
    let rest = [ip(&lab, "demo", "b")?];
    until(5, "the other to be found", || Ok(resolve(&lab, "user", "cache")? == rest))?;
    lab.lab(&["stop", "b"])?.ok()?;
    until(5, "the name to be gone", || Ok(resolve(&lab, "user", "cache")?.is_empty()))
}

#[test]
fn b07_the_data_path_address_may_change() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8080:80")?.ok()?;
    lab.container("h1", "user", "--network demo")?;
    lab.echo("h2", "w", "--network demo --service web")?;
    lab.settled(&["h1", "h2"])?;
    lab.http(Place::In("user"), "web:80", 1)?;
    for step in ["ip addr add 192.168.77.52/24 dev eth0", "ip addr del 192.168.77.12/24 dev eth0"] {
        // The second address is the first one's secondary, and would go with it.
        lab.at(Place::Host("h2"), "sysctl -q -w net.ipv4.conf.eth0.promote_secondaries=1")?
            .ok()?;
        lab.at(Place::Host("h2"), step)?.ok()?;
    }
    until(15, "the network to have followed", || {
        let done = lab.at(Place::In("user"), "meshd-echo client http web:80 --timeout 1")?;
        let fdb = lab.at(Place::Host("h1"), "bridge fdb")?.ok()?;
        Ok(done.status == 0 && fdb.contains("192.168.77.52") && !fdb.contains("192.168.77.12"))
    })?;
    until(10, "h2 to have nothing to complain of", || {
        Ok(lab.json("h2", "status")?["errors"].as_array().is_some_and(Vec::is_empty))
    })
}

#[test]
fn b13_one_port_number_in_tcp_and_udp() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name tcp --network demo --publish 9000:80/tcp")?
        .ok()?;
    lab.ctl("h1", "service create --name udp --network demo --publish 9000:7/udp")?
        .ok()?;
    lab.echo("h1", "t", "--network demo --service tcp")?;
    lab.echo("h2", "u", "--network demo --service udp")?;
    lab.balanced(&HOSTS, 9000, &["t"])?;
    lab.settled(&HOSTS)?;
    for host in HOSTS {
        let to = format!("{}:9000", address(host));
        assert!(lab.udp(Place::Client, &to, 3)?.iter().all(|r| r.hostname == "u"), "{host}");
        assert!(lab.http(Place::Client, &to, 3)?.iter().all(|r| r.hostname == "t"), "{host}");
    }
    lab.ctl("h1", "service create --name third --network demo --publish 9000:80/tcp")?
        .refused(4, &["9000/tcp", "tcp"])
}

#[test]
fn b15_without_backends_the_answer_is_no_and_at_once() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl(
        "h1",
        "service create --name empty --network demo --publish 9000:80/tcp --publish 9000:7/udp",
    )?
    .ok()?;
    lab.container("h3", "user", "--network demo")?;
    let refused = |place, command: &str| -> Result<()> {
        until(5, "the port to be known", || {
            let begun = Instant::now();
            let done = lab.at(place, command)?;
            let at_once = begun.elapsed() < Duration::from_secs(2);
            Ok(done.status != 0 && at_once && done.err.to_lowercase().contains("refused"))
        })
    };
    for host in HOSTS {
        let to = format!("{}:9000", address(host));
        refused(Place::Client, &format!("meshd-echo client http {to} --timeout 3"))?;
        refused(Place::Client, &format!("meshd-echo client udp {to} --timeout 3"))?;
    }
    refused(Place::In("user"), "meshd-echo client http empty:80 --timeout 3")?;
    refused(Place::In("user"), "meshd-echo client udp empty:7 --timeout 3")
}

#[test]
fn b46_names_are_there_before_the_first_instruction() -> Result<()> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo")?.ok()?;
    for (n, host) in HOSTS.iter().enumerate() {
        let name = format!("early{n}");
        // Its very first program asks for itself, once: by the name that no file of its own has.
        let asks = format!("meshd-echo client resolve {name}.demo");
        lab.start(host, &name, "--network demo --service web", &asks)?;
        let log = until_logged(&lab, &name)?;
        assert!(log.contains(&ip(&lab, "demo", &name)?), "{name}: {log}");
        assert!(!log.contains("cannot"), "{name}: {log}");
    }
    Ok(())
}

/// What a container has printed, once it has printed something. The first line is that of its attachment.
fn until_logged(lab: &Lab, name: &str) -> Result<String> {
    within(20, "the container to print", || {
        let log = lab.lab(&["logs", name])?.ok()?;
        let said = log.lines().skip(1).collect::<Vec<_>>().join("\n");
        Ok((!said.is_empty()).then_some(said))
    })
}
