//! To be seen: flows, drops with their reasons, rates, metrics, and what doctor finds.

use std::{collections::BTreeSet, thread};

use mesh_tests::{Done, Lab, Place, Result, until, within};
use serde_json::Value;

/// A service `web` at port 8888 with a backend on h2, and a container on h1.
fn lab() -> Result<Lab> {
    let lab = Lab::up("")?;
    lab.ctl("h1", "network create demo --subnet 172.30.0.0/24")?.ok()?;
    lab.ctl("h1", "service create --name web --network demo --publish 8888:80")?.ok()?;
    lab.echo("h2", "w1", "--network demo --service web")?;
    lab.container("h1", "user", "--network demo")?;
    lab.balanced(&["h1"], 8888, &["w1"])?;
    Ok(lab)
}

/// Runs `meshctl COMMAND` on h1 while `busy` is repeated, and gives what it printed.
fn during(lab: &Lab, command: &str, busy: impl Fn() -> Result<()>) -> Result<String> {
    thread::scope(|scope| {
        let told = scope.spawn(|| lab.ctl("h1", command).and_then(Done::ok).map_err(|e| e.to_string()));
        while !told.is_finished() {
            busy()?;
        }
        Ok(told.join().map_err(|_| "a thread of the scenario panicked")??)
    })
}

/// One JSON document per line.
fn documents(text: &str) -> Result<Vec<Value>> {
    text.lines()
        .map(|line| serde_json::from_str(line).map_err(|e| format!("{e}: {line}").into()))
        .collect()
}

/// Packets that h1 dropped for a reason.
fn dropped(lab: &Lab, reason: &str) -> Result<u64> {
    let all = lab.json("h1", "flows --drops --totals")?;
    let row = all.as_array().and_then(|rows| rows.iter().find(|r| r["reason"] == reason));
    row.and_then(|r| r["packets"].as_u64())
        .ok_or_else(|| format!("no {reason} in {all}").into())
}

#[test]
fn flows_name_client_service_and_backend() -> Result<()> {
    let lab = lab()?;
    let printed = during(&lab, "flows --service web --count 3 --for 30s -o json", || {
        lab.http(Place::Client, "192.168.77.11:8888", 1).map(drop)
    })?;
    let lines = documents(&printed)?;
    let (summary, flows) = lines.split_last().ok_or("nothing was printed")?;
    assert_eq!(flows.len(), 3, "{printed}");
    for flow in flows {
        assert_eq!((&flow["kind"], &flow["service"]), (&"flow".into(), &"web".into()), "{flow}");
        assert_eq!(
            (&flow["backend"]["name"], &flow["backend"]["node"]),
            (&"w1".into(), &"h2".into()),
            "{flow}"
        );
        assert_eq!(flow["destination"], "192.168.77.11:8888", "{flow}");
        assert!(flow["source"].as_str().is_some_and(|s| s.starts_with("192.168.77.200:")), "{flow}");
    }
    assert!(summary["counted"][0]["packets"].as_u64() >= Some(3), "{summary}");
    // From a container, by the service's virtual address; UDP, which is balanced packet by packet.
    let printed = during(&lab, "flows --count 1 --for 30s -o json", || {
        lab.udp(Place::In("user"), "web:7", 1).map(drop)
    })?;
    let flow = &documents(&printed)?[0];
    assert_eq!(
        (&flow["service"], &flow["backend"]["name"]),
        (&"web".into(), &"w1".into()),
        "{flow}"
    );
    assert!(flow["source"].as_str().is_some_and(|s| s.starts_with("172.30.0.")), "{flow}");
    lab.ctl("h1", "flows --service nobody")?.refused(3, &["nobody"])
}

#[test]
fn drops_have_a_reason_and_are_counted_exactly() -> Result<()> {
    let lab = lab()?;
    let network = lab.json("h1", "network inspect demo")?;
    let endpoints = network["endpoints"].as_array().ok_or("no endpoints")?;
    let w1 = endpoints.iter().find(|e| e["name"] == "w1").ok_or("no w1")?;
    let (ip, mac) = (w1["ip"].as_str().unwrap_or_default(), w1["mac"].as_str().unwrap_or_default());
    // An address that is not the container's; its neighbour is known, so that no ARP goes before.
    for command in [
        "ip addr add 172.30.0.99/32 dev eth0".to_owned(),
        format!("ip neigh replace {ip} lladdr {mac} dev eth0 nud permanent"),
    ] {
        lab.at(Place::In("user"), &command)?.ok()?;
    }
    let spoof = |count: u32| -> Result<()> {
        let ping = format!("ping -n -q -c {count} -i 0.2 -W 1 -I 172.30.0.99 {ip}");
        assert_ne!(lab.at(Place::In("user"), &ping)?.status, 0, "nobody answers");
        Ok(())
    };
    let before = dropped(&lab, "drop_spoofed_ip")?;
    spoof(5)?;
    assert_eq!(dropped(&lab, "drop_spoofed_ip")? - before, 5);

    // The container's kernel may have dropped packets of its own to show (IPv6, in a network without).
    let printed = during(&lab, "flows --drops --for 5s -o json", || spoof(1))?;
    let lines = documents(&printed)?;
    let spoofed: Vec<_> = lines.iter().filter(|l| l["reason"] == "drop_spoofed_ip").collect();
    let drop = spoofed.first().ok_or_else(|| format!("not shown: {printed}"))?;
    assert_eq!(drop["kind"], "drop", "{drop}");
    assert_eq!(
        (&drop["source"], &drop["destination"]),
        (&"172.30.0.99".into(), &ip.into()),
        "{drop}"
    );
    assert!(drop["device"].as_str().is_some_and(|d| d.starts_with("mv-")), "{drop}");
    assert!(lab.ctl("h1", "flows --drops --totals")?.ok()?.contains("not its own"));
    Ok(())
}

#[test]
fn top_shows_who_is_busy() -> Result<()> {
    let lab = lab()?;
    // Nothing comes in a second in which the machine stood still.
    until(60, "a second with requests in it", || {
        let printed = during(&lab, "top --once -o json", || {
            lab.http(Place::Client, "192.168.77.11:8888", 5).map(drop)
        })?;
        let rates: Value = serde_json::from_str(&printed)?;
        let web = &rates["services"][0];
        assert_eq!(web["service"], "web", "{rates}");
        let backend = &web["backends"][0];
        assert_eq!((&backend["backend"], &backend["node"]), (&"w1".into(), &"h2".into()), "{rates}");
        let rates = ["flows", "packets", "bytes", "reply_packets", "reply_bytes"].map(|what| backend[what].as_f64());
        Ok(rates.into_iter().all(|rate| rate > Some(0.0)))
    })?;
    assert!(lab.ctl("h1", "top --once -d 0.1")?.ok()?.contains("w1"));
    Ok(())
}

/// Series and values of a page, which must be as the text format wants: each sample after the TYPE of
/// its family, no series twice.
fn series(page: &str) -> Result<Vec<(String, f64)>> {
    let (mut all, mut seen, mut families) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for line in page.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.split(' ');
            match (words.next(), words.next(), words.next()) {
                (Some("HELP"), Some(_), Some(_)) => {}
                (Some("TYPE"), Some(name), Some("counter" | "gauge" | "histogram")) => assert!(families.insert(name), "{name} twice"),
                _ => return Err(format!("not a comment of the format: {line}").into()),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').ok_or_else(|| format!("no value: {line}"))?;
        let name = series.split('{').next().unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|s| name.strip_suffix(s))
            .unwrap_or(name);
        assert!(families.contains(family) || families.contains(name), "{line} has no TYPE");
        assert!(seen.insert(series.to_owned()), "{series} twice");
        all.push((series.to_owned(), value.parse()?));
    }
    Ok(all)
}

#[test]
fn metrics_are_served_as_prometheus_reads_them() -> Result<()> {
    let lab = lab()?;
    lab.http(Place::Client, "192.168.77.11:8888", 5)?;
    let scrape = |host| {
        lab.at(Place::Host(host), "curl -sSf -i http://127.0.0.1:9477/metrics")
            .and_then(Done::ok)
    };
    let is_well = |page: &str| {
        ["meshd_nodes{state=\"ready\"} 3", "meshd_reconcile_errors 0"]
            .iter()
            .all(|line| page.lines().any(|l| l == *line))
    };
    let answer = within(15, "a page of three ready nodes", || {
        let answer = scrape("h1")?;
        Ok(is_well(&answer).then_some(answer))
    })?;
    let (head, page) = answer.split_once("\r\n\r\n").ok_or("no page")?;
    assert!(head.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{head}");
    let all = series(page)?;
    let value = |wanted: &str| -> Result<f64> {
        let found = all.iter().find(|(s, _)| s == wanted).map(|(_, v)| *v);
        found.ok_or_else(|| format!("no {wanted} in {page}").into())
    };
    for positive in [
        "meshd_packets_total{reason=\"new_flow\"}",
        "meshd_service_flows_total{service=\"web\",network=\"\",backend=\"w1\",node=\"h2\"}",
        "meshd_service_bytes_total{service=\"web\",network=\"\",backend=\"w1\",node=\"h2\",direction=\"from_backend\"}",
        "meshd_reconcile_duration_seconds_count",
        "meshd_reconcile_steps_total",
        "meshd_applied_revision",
        "meshd_map_capacity{map=\"FLOWS_KEPT\"}",
        "meshd_raft_term",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
    ] {
        assert!(value(positive)? > 0.0, "{positive}");
    }
    assert_eq!(value("meshd_raft_is_leader")?, 1.0);
    assert_eq!(value("meshd_dropped_packets_total{reason=\"drop_no_port\"}")?, 0.0);
    assert!(!scrape("h2")?.contains("meshd_raft_"), "no raft on a worker");
    Ok(())
}

/// What doctor looks at.
const CHECKS: [&str; 12] = [
    "cluster",
    "managers",
    "clock",
    "certificate",
    "applied",
    "plan",
    "nodes",
    "peers",
    "mtu",
    "hooks",
    "maps",
    "features",
];

#[test]
fn doctor_is_well_on_a_healthy_lab_and_names_a_lost_peer() -> Result<()> {
    let lab = lab()?;
    for host in ["h1", "h2", "h3"] {
        let mut last = String::new();
        let has = |said: &str, check: &str| said.lines().any(|l| l.split_whitespace().nth(1) == Some(check));
        until(20, "doctor to look at everything, and to find nothing", || {
            let done = lab.ctl(host, "doctor")?;
            last = done.out;
            Ok(done.status == 0 && CHECKS.iter().all(|check| has(&last, check)))
        })
        .map_err(|e| format!("{e}: {host}: {last}"))?;
    }
    lab.lab(&["cut", "h3"])?.ok()?;
    let done = lab.ctl("h1", "doctor -o json")?;
    assert_eq!(done.status, 1, "{done:?}");
    let found: Value = serde_json::from_str(&done.out)?;
    let peers = found["checks"]
        .as_array()
        .and_then(|c| c.iter().find(|c| c["name"] == "peers"))
        .ok_or("no check")?;
    assert_eq!(peers["ok"], false, "{found}");
    let detail = peers["detail"].as_str().unwrap_or_default();
    assert!(detail.contains("h3 (192.168.77.13)") && !detail.contains("h2"), "{detail}");
    lab.lab(&["heal"])?.ok()?;
    until(15, "doctor to find nothing again", || Ok(lab.ctl("h1", "doctor")?.status == 0))
}
