//! meshd killed at random points while containers come and go: nothing stays behind, on the host or in
//! the cluster, and a connection through the host does not notice.

use std::{collections::BTreeSet, thread, time::Duration};

use mesh_tests::{Lab, Place, Result, lab_dir, until};

/// How often, unless MESH_KILLS says it.
const TIMES: u64 = 40;
/// A container is attached and detached within this, in milliseconds; the kill comes some time in it.
const SPAN: u64 = 150;

const H2: Place = Place::Host("h2");

/// What a host carries, in the words of the tools that show it; no counters.
const LOOK: [&str; 6] = [
    "ip -o addr show",
    "ip route show table all",
    "ip -6 route show table all",
    "bridge fdb show",
    "nft list ruleset",
    "ip netns list",
];

/// Attaches and detaches a container, as far as meshd lets it.
const COME_AND_GO: &str = "ip netns add k; meshctl network connect --service web ov netns:k; \
    meshctl network disconnect --force ov netns:k; ip netns del k; true";

#[test]
fn kills_leave_nothing_behind() -> Result<()> {
    let times = match std::env::var("MESH_KILLS") {
        Ok(text) => text.parse().map_err(|_| format!("MESH_KILLS {text:?} is not a number"))?,
        Err(_) => TIMES,
    };
    let lab = Lab::up("--nodes 2")?;
    lab.ctl("h1", "network create ov")?.ok()?;
    lab.ctl("h1", "service create --name web --network ov --publish 8080:80 --publish 7000:7")?
        .ok()?;
    lab.echo("h1", "w1", "--network ov --service web")?;
    lab.echo("h2", "w2", "--network ov --service web")?;
    lab.balanced(&["h1", "h2"], 8080, &["w1", "w2"])?;
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut connection = lab.connect(Place::Client, "192.168.77.12:7000")?;
        let backend = connection.ask()?.hostname;
        connections.push((connection, backend));
    }
    // An address under duplicate detection is shown otherwise afterwards, and has no route yet.
    until(20, "h2's addresses to be settled", || {
        Ok(!lab.at(H2, "ip -o addr show")?.ok()?.contains("tentative"))
    })?;
    let (before, pins) = (look(&lab)?, pins(&lab)?);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for n in 0..times {
        // Knuth's MMIX generator: the points are the same in every run, their meaning is not.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let after = Duration::from_millis((random >> 33) % SPAN);
        thread::scope(|scope| -> Result<()> {
            let busy = scope.spawn(|| lab.argv(H2, &["sh", "-c", COME_AND_GO]).map(drop).map_err(|e| e.to_string()));
            pause(after);
            lab.lab(&["kill", "h2"])?.ok()?;
            lab.lab(&["restart", "h2"])?.ok().map_err(|e| format!("after kill {n}: {e}"))?;
            Ok(busy.join().map_err(|_| "the thread of the container panicked")??)
        })?;
        for (connection, backend) in &mut connections {
            let answer = connection
                .ask()
                .map_err(|e| format!("kill {n} ended the connection to {backend}: {e}"))?;
            assert_eq!(answer.hostname, *backend, "kill {n}");
        }
    }
    until(20, "the endpoints that nobody has any more to go", || {
        let names: BTreeSet<_> = lab.network("ov")?.endpoints.into_iter().map(|e| e.name).collect();
        Ok(names == BTreeSet::from(["w1".to_owned(), "w2".to_owned()]))
    })?;
    until(20, "the host to carry what it carried", || {
        Ok(look(&lab).is_ok_and(|now| now == before) && self::pins(&lab)? == pins)
    })
    .map_err(|e| match look(&lab) {
        Ok(now) => format!("{e}: {}", differences(&before, &now)),
        Err(look) => format!("{e}, and not to be seen: {look}"),
    })?;
    let doctor = lab.json("h2", "doctor --plan")?;
    assert_eq!(doctor["plan"].as_array().map(Vec::len), Some(0), "{doctor}");
    let ov = lab.json("h1", "network inspect ov")?;
    let used = ov.get("subnets").or_else(|| ov[0].get("subnets")).map(|s| s[0]["used"].clone());
    // The gateway, the virtual address and two containers.
    assert_eq!(used, Some(4.into()), "{ov}");
    lab.balanced(&["h1", "h2"], 8080, &["w1", "w2"])
}

/// Not a wait for something: the point of a kill.
#[expect(clippy::disallowed_methods, reason = "nothing is waited for")]
fn pause(after: Duration) {
    thread::sleep(after);
}

fn look(lab: &Lab) -> Result<Vec<BTreeSet<String>>> {
    let mut all = Vec::new();
    for command in LOOK {
        let out = lab.at(H2, command)?.ok()?;
        all.push(out.lines().map(|l| l.trim().to_owned()).collect());
    }
    Ok(all)
}

/// What was there and is not any more, and what came, a line each.
fn differences(before: &[BTreeSet<String>], now: &[BTreeSet<String>]) -> String {
    let mut lines = Vec::new();
    for ((command, before), now) in LOOK.iter().zip(before).zip(now) {
        lines.extend(before.difference(now).map(|line| format!("{command}: gone: {line}")));
        lines.extend(now.difference(before).map(|line| format!("{command}: new: {line}")));
    }
    if lines.is_empty() {
        "only its pins differ".into()
    } else {
        lines.join("\n")
    }
}

/// Names of what is pinned; those of programs at devices name the device by its index.
fn pins(lab: &Lab) -> Result<BTreeSet<String>> {
    let root = lab_dir().display().to_string();
    let out = lab.argv(H2, &["find", &format!("{root}/bpffs/h2"), "-mindepth", "1"])?.ok()?;
    Ok(out.lines().map(str::to_owned).collect())
}
