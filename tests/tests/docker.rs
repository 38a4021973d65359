//! Docker's containers on mesh networks, with Docker's own commands and a real dockerd on each host
//! (issue "Runtimes", BEHAVIOURS 59 and 60).

use std::{collections::BTreeSet, process::Command};

use mesh_tests::{Docker, Lab, Place, Result, address, lab_dir, tally, until};

const ECHO: &str = "meshd-echo --http 80 --tcp 7 --udp 7";
const SLEEP: &str = "sleep 1000";
const BOTH: [&str; 2] = ["h1", "h2"];

/// What one container gets from another by name.
fn ask(docker: &Docker<'_>, host: &str, container: &str, to: &str) -> Result<String> {
    let answer = docker.at(host, &format!("exec {container} meshd-echo client http {to}:80"))?.ok()?;
    let value: serde_json::Value = serde_json::from_str(&answer)?;
    Ok(value["hostname"].as_str().unwrap_or_default().to_owned())
}

fn inspected(docker: &Docker<'_>, host: &str, format: &str, what: &str) -> Result<String> {
    let out = docker.at(host, &format!("inspect -f {format} {what}"))?.ok()?;
    Ok(out.trim().to_owned())
}

/// Waits until a container of h1 that was started again is reached from everywhere.
fn back(lab: &Lab, docker: &Docker<'_>, name: &str) -> Result<()> {
    docker.listed(name)?;
    docker.serves("h1", name)?;
    lab.settled(&BOTH)
}

/// No endpoint, and nothing of one in any kernel.
fn nothing_left(lab: &Lab, docker: &Docker<'_>, hosts: &[&str]) -> Result<()> {
    until(20, "every endpoint to be gone", || Ok(docker.addresses()?.is_empty()))?;
    for host in hosts {
        until(10, &format!("{host} to have no interface of a container"), || {
            let links = lab.at(Place::Host(host), "ip -o link")?.ok()?;
            Ok(!links.contains(" mv-") && !links.contains(" mc-"))
        })?;
    }
    Ok(())
}

#[test]
fn docker_containers_live_on_mesh_networks() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --publish 8080:80")?.ok()?;
    let docker = Docker::up(&lab, &["h1", "h2"])?;

    // Docker's own allocator would give one address twice: the refusal says what works, and it does.
    let refused = docker.at("h1", "network create -d mesh -o mesh.network=ov ov")?;
    let range = lab.network("ov")?.subnets.remove(0).subnet;
    let advice = format!("docker network create -d mesh --ipam-driver mesh --ipam-opt mesh.network=ov --subnet {range} ov");
    assert!(refused.status != 0 && refused.err.trim().ends_with(&advice), "{}", refused.err);
    lab.at(Place::Host("h1"), &advice)?.ok()?;
    docker.at("h1", "network rm ov")?.ok()?;
    // The subnet says which network is meant, too.
    docker
        .at("h1", &format!("network create -d mesh --ipam-driver mesh --subnet {range} ov"))?
        .ok()?;
    docker.at("h1", "network rm ov")?.ok()?;
    let nobodys = docker.at("h1", "network create -d mesh --ipam-driver mesh --subnet 192.0.2.0/24 lost")?;
    assert!(nobodys.err.contains("has to know the network"), "{}", nobodys.err);
    let lost = docker.at(
        "h1",
        "network create -d mesh --ipam-driver mesh --ipam-opt mesh.network=nowhere lost",
    )?;
    assert!(lost.err.contains("no network named \"nowhere\""), "{}", lost.err);
    for host in ["h1", "h2"] {
        docker.network(host, "ov")?;
    }

    // Three containers on two hosts, by name and alias, from the first instruction on.
    docker.run("h1", "one", "--network name=ov,driver-opt=mesh.service=web,alias=first", ECHO)?;
    docker.run("h2", "two", "--network ov --label mesh.service=web --label tier=front", ECHO)?;
    lab.settled(&BOTH)?;
    let first = docker.at("h2", "run --rm --network ov lab meshd-echo client http one:80")?.ok()?;
    assert!(first.contains("\"one\""), "{first}");
    docker.run("h2", "three", "--network ov -p 9090:80", ECHO)?;
    lab.settled(&BOTH)?;
    for (host, from, to) in [
        ("h1", "one", "two"),
        ("h1", "one", "three"),
        ("h2", "two", "one"),
        ("h2", "two", "first"),
        ("h2", "three", "two.ov"),
    ] {
        let answer = ask(&docker, host, from, to)?;
        let wanted = to.trim_end_matches(".ov").replace("first", "one");
        assert_eq!(answer, wanted, "{from} asks {to}");
    }
    let outside = docker.at("h1", "exec one nslookup outside.example")?.ok()?;
    assert!(outside.contains("198.51.100.1"), "{outside}");
    docker.at("h1", "exec one ping -c 1 -W 2 198.51.100.1")?.ok()?;
    // A service's port on every node; a container's own on its host.
    lab.balanced(&["h1", "h2"], 8080, &["one", "two"])?;
    let own = lab.http(Place::Client, &format!("{}:9090", address("h2")), 1)?;
    assert_eq!(tally(&own).keys().collect::<Vec<_>>(), ["three"]);
    // Docker has no way for a driver of another process to tell it that (README); meshctl does.
    assert_eq!(docker.at("h2", "port three")?.ok()?.trim(), "");
    assert_eq!(lab.json("h2", "endpoint inspect three")?["ports"][0]["published"], 9090);
    let labels = lab.json("h1", "endpoint inspect two")?;
    assert_eq!(labels["labels"]["tier"], "front", "{labels}");

    // Docker shows what is.
    let shown = inspected(&docker, "h1", "{{.NetworkSettings.Networks.ov.IPAddress}}", "one")?;
    let known = docker.addresses()?;
    assert!(known.contains(&("one".to_owned(), shown.clone())), "{shown} {known:?}");
    let members = docker.at("h1", "network inspect ov")?.ok()?;
    assert!(members.contains(&format!("{shown}/")), "{members}");
    assert_ne!(docker.at("h1", "network rm ov")?.status, 0, "in use");
    assert_ne!(lab.ctl("h1", "network rm ov")?.status, 0, "in use");
    let by_docker = lab.ctl("h1", "network disconnect ov one")?;
    assert!(
        by_docker.status == 4 && by_docker.err.contains("docker network disconnect"),
        "{}",
        by_docker.err
    );

    // An address of one's own is kept over restarts, and nobody else's.
    let subnet = lab.network("ov")?.subnets.remove(0).subnet;
    let chosen = subnet.replace(".0/", ".77/").split('/').next().unwrap_or_default().to_owned();
    docker.run("h1", "fixed", &format!("--network ov --ip {chosen}"), ECHO)?;
    assert_ne!(docker.at("h2", &format!("run --rm --network ov --ip {chosen} lab true"))?.status, 0);
    docker.at("h1", "restart -t 0 fixed")?.ok()?;
    back(&lab, &docker, "fixed")?;
    assert!(docker.addresses()?.contains(&("fixed".to_owned(), chosen)));
    assert_eq!(ask(&docker, "h2", "three", "fixed")?, "fixed");

    // A second network, connected and disconnected while the container runs.
    lab.ctl("h1", "network create back --internal")?.ok()?;
    docker.network("h1", "back")?;
    docker.network("h2", "back")?;
    docker.at("h1", "network connect --alias store back fixed")?.ok()?;
    docker.run("h2", "inner", "--network back", ECHO)?;
    until(10, "the alias on the second network", || {
        Ok(ask(&docker, "h2", "inner", "store").is_ok_and(|h| h == "fixed"))
    })?;
    assert_ne!(docker.at("h2", "exec inner ping -c 1 -W 1 198.51.100.1")?.status, 0, "internal");
    docker.at("h1", "network disconnect back fixed")?.ok()?;
    until(10, "the second endpoint to go", || {
        Ok(lab.network("back")?.endpoints.iter().all(|e| e.name == "inner"))
    })?;
    assert_eq!(ask(&docker, "h1", "one", "fixed")?, "fixed");

    range_of_ports(&lab, &docker)?;
    two_networks(&lab, &docker)?;
    both_families(&lab, &docker)?;

    // It goes as it came, and prune takes docker's networks only.
    for (host, names) in [("h1", "one fixed"), ("h2", "two three inner")] {
        docker.at(host, &format!("rm -f {names}"))?.ok()?;
        docker.at(host, "network prune -f")?.ok()?;
    }
    nothing_left(&lab, &docker, &["h1", "h2"])?;
    let pools = lab.network("ov")?;
    assert!(pools.endpoints.is_empty());
    Ok(())
}

/// `-p 9091-9092:80`: the first free one, until none is.
fn range_of_ports(lab: &Lab, docker: &Docker<'_>) -> Result<()> {
    for name in ["range-a", "range-b"] {
        docker.run("h1", name, "--network ov -p 9091-9092:80", ECHO)?;
    }
    for (port, name) in [(9091, "range-a"), (9092, "range-b")] {
        let own = lab.http(Place::Client, &format!("{}:{port}", address("h1")), 1)?;
        assert_eq!(tally(&own).keys().collect::<Vec<_>>(), [name]);
    }
    let full = docker.at("h1", "run --rm --network ov -p 9091-9092:80 lab true")?;
    assert!(full.status != 0 && full.err.contains("9091-9092/tcp"), "{}", full.err);
    docker.at("h1", "rm -f range-a range-b")?.ok().map(drop)
}

/// A container on two networks publishes its port once, by the one that has its default route, also when
/// that becomes another.
fn two_networks(lab: &Lab, docker: &Docker<'_>) -> Result<()> {
    // Docker takes the first by name for the default route.
    lab.ctl("h1", "network create aside")?.ok()?;
    docker.network("h1", "aside")?;
    docker
        .at(
            "h1",
            &format!("create --name both --hostname both --label tier=both --network ov -p 9095:80 lab {ECHO}"),
        )?
        .ok()?;
    docker.at("h1", "network connect aside both")?.ok()?;
    docker.at("h1", "start both")?.ok()?;
    let answers = |what: &str| {
        until(10, what, || {
            let asked = lab.http(Place::Client, &format!("{}:9095", address("h1")), 1);
            Ok(asked.is_ok_and(|seen| seen.iter().all(|r| r.hostname == "both")))
        })
    };
    answers("a container of two networks to answer")?;
    docker.at("h1", "network disconnect aside both")?.ok()?;
    answers("the network that is left to answer")?;
    docker.at("h1", "network connect aside both")?.ok()?;
    answers("the network that came back to answer")?;
    // A service of either network is answered too, by every node and whoever asks.
    for (network, port) in [("aside", 8096), ("ov", 8097)] {
        lab.ctl(
            "h1",
            &format!("service create --name of-{network} --network {network} --publish {port}:80 --selector tier=both"),
        )?
        .ok()?;
        for host in ["h1", "h2"] {
            until(
                10,
                &format!("a container of two networks to answer {host}'s clients in {network}"),
                || {
                    let asked = lab.http(Place::Client, &format!("{}:{port}", address(host)), 2);
                    Ok(asked.is_ok_and(|seen| seen.len() == 2 && seen.iter().all(|r| r.hostname == "both")))
                },
            )?;
        }
        lab.ctl("h1", &format!("service rm of-{network}"))?.ok()?;
    }
    // Another's port is refused when the container starts, and it is free once that is gone.
    let taken = docker.at("h1", "run --rm --network ov -p 9095:80 lab true")?;
    assert!(taken.status != 0 && taken.err.contains("9095/tcp"), "{}", taken.err);
    docker.at("h1", "rm -f both")?.ok()?;
    docker.at("h1", "run --rm --network ov -p 9095:80 lab true")?.ok()?;
    docker.at("h1", "network rm aside")?.ok()?;
    lab.ctl("h1", "network rm aside")?.ok().map(drop)
}

/// A network with IPv4 and IPv6: a container has an address of each, and reaches one of another host by
/// either.
fn both_families(lab: &Lab, docker: &Docker<'_>) -> Result<()> {
    lab.ctl("h1", "network create six --ipv6")?.ok()?;
    let create = "network create -d mesh --ipam-driver mesh --ipam-opt mesh.network=six --ipv6 six";
    for (host, name) in [("h1", "six-a"), ("h2", "six-b")] {
        docker.at(host, create)?.ok()?;
        docker.run(host, name, "--network six", ECHO)?;
    }
    lab.settled(&BOTH)?;
    let endpoints = lab.network("six")?.endpoints;
    for (host, name, to) in [("h1", "six-a", "six-b"), ("h2", "six-b", "six-a")] {
        let known = |name: &str| endpoints.iter().find(|e| e.name == name).ok_or("an endpoint is missing");
        let (own, other) = (known(name)?, known(to)?);
        let (own6, other6) = (own.ip6.as_deref().unwrap_or_default(), other.ip6.as_deref().unwrap_or_default());
        let shown = inspected(docker, host, "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}", name)?;
        assert_eq!(shown, own6, "{name}");
        let inside = docker.at(host, &format!("exec {name} ip addr show dev eth0"))?.ok()?;
        assert!(inside.contains(&format!("{own6}/")) && inside.contains(&own.ip), "{inside}");
        docker.at(host, &format!("exec {name} ping -6 -c 1 -W 2 {other6}"))?.ok()?;
        docker
            .at(host, &format!("exec {name} meshd-echo client http [{other6}]:80"))?
            .ok()?;
        docker.at(host, &format!("exec {name} ping -6 -c 1 -W 2 {to}"))?.ok()?;
        docker.at(host, &format!("exec {name} ping -c 1 -W 2 {to}"))?.ok()?;
        docker.at(host, &format!("exec {name} ping -6 -c 1 -W 2 2001:db8:100::1"))?.ok()?;
    }
    docker.at("h1", "restart -t 0 six-a")?.ok()?;
    docker.listed("six-a")?;
    lab.settled(&BOTH)?;
    docker.at("h2", "exec six-b ping -6 -c 1 -W 2 six-a")?.ok()?;
    for (host, name) in [("h1", "six-a"), ("h2", "six-b")] {
        docker.at(host, &format!("rm -f {name}"))?.ok()?;
        docker.at(host, "network rm six")?.ok()?;
    }
    Ok(())
}

/// What meshd answers to Docker's IPAM driver about an address, asked for the first time or again.
fn address_verb(lab: &Lab, verb: &str, address: &str, header: &str) -> Result<String> {
    let dir = lab_dir().display().to_string();
    let network = lab.json("h1", "network inspect ov")?;
    let (id, subnet) = (network["id"].as_str(), network["subnets"][0]["subnet"].as_str());
    let pool = format!("{}/{}", id.unwrap_or_default(), subnet.unwrap_or_default());
    let body = format!(r#"{{"PoolID":"{pool}","Address":"{address}","Options":{{}}}}"#);
    let asked = format!("curl -sS --unix-socket {dir}/h1/run/meshd-docker.sock -H {header}:1 -d {body} http://meshd/IpamDriver.{verb}");
    lab.at(Place::Host("h1"), &asked)?.ok()
}

/// A meshd that was killed has reserved an address and could not say so: the next one, asked again, says it, once.
/// What it is asked again to release is not taken from the container that has it by now.
fn asked_again(lab: &Lab, docker: &Docker<'_>) -> Result<()> {
    let chosen = lab.network("ov")?.subnets.remove(0).subnet.replace(".0/", ".78/");
    let ip = chosen.split('/').next().unwrap_or_default();
    let (first, again) = ("x-first", "meshd-repeat");
    let given = format!("{{\"Address\":\"{chosen}\"}}");
    assert_eq!(address_verb(lab, "RequestAddress", ip, first)?, given);
    let refused = address_verb(lab, "RequestAddress", ip, first)?;
    assert!(refused.contains(ip) && refused.contains("\"Err\""), "{refused}");
    assert_eq!(address_verb(lab, "RequestAddress", ip, again)?, given);
    let refused = address_verb(lab, "RequestAddress", ip, again)?;
    assert!(refused.contains("\"Err\""), "{refused}");
    assert_eq!(address_verb(lab, "ReleaseAddress", ip, first)?, "{}");
    docker.run("h1", "holder", &format!("--network ov --ip {ip}"), SLEEP)?;
    assert_eq!(address_verb(lab, "ReleaseAddress", ip, again)?, "{}");
    assert!(docker.addresses()?.contains(&("holder".to_owned(), ip.to_owned())));
    let refused = address_verb(lab, "RequestAddress", ip, again)?;
    assert!(refused.contains("\"Err\""), "a living endpoint's: {refused}");
    docker.at("h1", "rm -f holder")?.ok().map(drop)
}

/// The process that has Docker's socket on a host: there is one.
fn front(host: &str) -> Result<String> {
    let script = "for p in $(ip netns pids mesh-HOST); do tr '\\0' ' ' 2>/dev/null </proc/$p/cmdline | grep -q ' docker-front ' && echo $p; done; true";
    let found = Command::new("sh").args(["-c", &script.replace("HOST", host)]).output()?;
    let found = String::from_utf8(found.stdout)?;
    let mut pids = found.split_whitespace();
    match (pids.next(), pids.next()) {
        (Some(pid), None) => Ok(pid.to_owned()),
        _ => Err(format!("{host} has not one process of docker's socket: {found:?}").into()),
    }
}

#[test]
fn docker_and_meshd_come_and_go_under_live_containers() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    let docker = Docker::up(&lab, &["h1", "h2"])?;
    for host in ["h1", "h2"] {
        docker.network(host, "ov")?;
    }
    docker.run("h1", "one", "--network ov", ECHO)?;
    docker.run("h2", "two", "--network ov", ECHO)?;
    lab.settled(&BOTH)?;
    asked_again(&lab, &docker)?;
    let before = docker.addresses()?;

    // meshd killed: docker's containers go on, and a new meshd finds them.
    lab.lab(&["kill", "h1"])?.ok()?;
    assert_eq!(ask(&docker, "h2", "two", "one")?, "one");
    lab.lab(&["restart", "h1"])?.ok()?;
    until(10, "meshd to answer", || Ok(lab.ctl("h1", "endpoint ls")?.status == 0))?;
    docker.listed("one")?;
    assert_eq!(docker.addresses()?, before);
    assert_eq!(ask(&docker, "h1", "one", "two")?, "two");

    // The process that has Docker's socket is the same, until it is killed as well or meshd is stopped.
    let kept = front("h1")?;
    lab.lab(&["kill", "h1"])?.ok()?;
    lab.lab(&["restart", "h1"])?.ok()?;
    assert_eq!(front("h1")?, kept);
    lab.at(Place::Host("h1"), &format!("kill -KILL {kept}"))?.ok()?;
    until(10, "another process to have docker's socket", || {
        Ok(front("h1").is_ok_and(|pid| pid != kept))
    })?;
    docker.at("h1", "run --rm --network ov lab true")?.ok()?;
    let kept = front("h1")?;
    lab.lab(&["restart", "h1"])?.ok()?;
    assert_ne!(front("h1")?, kept);
    docker.at("h1", "run --rm --network ov lab true")?.ok()?;

    // dockerd started anew beneath its containers.
    docker.end("h1", "-TERM")?;
    docker.start("h1", &["--live-restore"])?;
    // It stopped them when it went, as it does without live-restore.
    docker.at("h1", "start one")?.ok()?;
    back(&lab, &docker, "one")?;
    docker.end("h1", "-KILL")?;
    assert_eq!(ask(&docker, "h2", "two", "one")?, "one");
    docker.start("h1", &["--live-restore"])?;
    assert_eq!(inspected(&docker, "h1", "{{.State.Running}}", "one")?, "true");
    assert_eq!(ask(&docker, "h1", "one", "two")?, "two");
    assert_ne!(docker.at("h1", "network rm ov")?.status, 0, "in use");

    // dockerd killed, and then its container: what is left goes by itself.
    let pid = inspected(&docker, "h1", "{{.State.Pid}}", "one")?;
    docker.end("h1", "-KILL")?;
    lab.at(Place::Host("h1"), &format!("kill -KILL {pid}"))?.ok()?;
    until(30, "the endpoint of a container that ended unseen to go", || {
        Ok(docker.addresses()?.iter().all(|(name, _)| name != "one"))
    })?;
    docker.start("h1", &[])?;
    docker.at("h1", "start one")?.ok()?;
    back(&lab, &docker, "one")?;
    assert_eq!(ask(&docker, "h2", "two", "one")?, "one");

    // An address that docker asked for, and an interface that it never took.
    docker.at("h1", "rm -f one")?.ok()?;
    docker.at("h2", "rm -f two")?.ok()?;
    nothing_left(&lab, &docker, &["h1", "h2"])
}

#[test]
fn many_containers_at_once_have_addresses_of_their_own() -> Result<()> {
    const COUNT: usize = 24;
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    let docker = Docker::up(&lab, &["h1", "h2"])?;
    for host in ["h1", "h2"] {
        docker.network(host, "ov")?;
    }
    std::thread::scope(|scope| {
        let start = |n: usize| {
            let (docker, host) = (&docker, if n.is_multiple_of(2) { "h1" } else { "h2" });
            scope.spawn(move || {
                docker
                    .at(host, &format!("run -d --name c-{n} --network ov lab {SLEEP}"))
                    .map_err(|e| e.to_string())?
                    .ok()
                    .map_err(|e| e.to_string())
            })
        };
        let all: Vec<_> = (0..COUNT).map(start).collect();
        for started in all {
            started.join().map_err(|_| "a thread panicked")??;
        }
        Ok::<(), String>(())
    })?;
    for n in 0..COUNT {
        docker.listed(&format!("c-{n}"))?;
    }
    let addresses: BTreeSet<_> = docker.addresses()?.into_iter().map(|(_, ip)| ip).collect();
    assert_eq!(addresses.len(), COUNT);
    lab.settled(&BOTH)?;
    let (last, target) = (COUNT - 1, "c-0");
    docker.at("h2", &format!("exec c-{last} ping -c 1 -W 2 {target}"))?.ok()?;
    Ok(())
}

#[test]
fn a_docker_container_is_attached_without_the_driver() -> Result<()> {
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    let docker = Docker::up(&lab, &["h1"])?;
    docker
        .at("h1", &format!("run -d --name plain_one --hostname plain lab {ECHO}"))?
        .ok()?;
    lab.ctl("h1", "network connect --publish 8083:80 ov plain_one")?.ok()?;
    docker.listed("plain-one")?;
    docker.serves("h1", "plain_one")?;
    let published = lab.http(Place::Client, &format!("{}:8083", address("h1")), 3)?;
    assert_eq!(tally(&published).keys().collect::<Vec<_>>(), ["plain"]);
    let routes = docker.at("h1", "exec plain_one ip route")?.ok()?;
    let way_out = routes.lines().find(|l| l.starts_with("default")).unwrap_or_default();
    assert!(way_out.contains("dev eth0") && routes.contains("dev eth1"), "{routes}");
    lab.container("h2", "asker", "--network ov")?;
    lab.settled(&BOTH)?;
    let seen = lab.http(Place::In("asker"), "plain-one:80", 1)?;
    assert_eq!(tally(&seen).keys().collect::<Vec<_>>(), ["plain"]);
    lab.ctl("h1", "network disconnect ov plain_one")?.ok()?;
    lab.ctl("h1", "network connect ov plain_one")?.ok()?;
    docker.at("h1", "rm -f plain_one")?.ok()?;
    until(10, "the endpoint of a container that docker removed to go", || {
        Ok(docker.addresses()?.iter().all(|(name, _)| name == "asker"))
    })
}
