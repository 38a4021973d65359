//! One host with everything that the programs know, and BPF_PROG_TEST_RUN. Redirects are not carried
//! out by a test run: the counters tell which one it was.
#![expect(unsafe_code, reason = "bpf(2) is called directly")]
#![expect(clippy::unwrap_used, reason = "test")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd},
    process::Command,
};

use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_programs};
use mesh_core::{
    Mac,
    action::BpfAction,
    lb::{self, Hook, Program, Row},
    objects::Protocol,
};
use mesh_loader::{Loader, Options};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::{frame::Frame, packet::Packet};

pub const PASS: i32 = -1;
pub const DROP: i32 = 2;
pub const REDIRECT: i32 = 7;

pub const UPLINK: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const INGRESS: [u8; 6] = [2, 0x6d, 172, 30, 0, 1];
pub const PEER: [u8; 6] = [2, 0x6d, 172, 30, 0, 2];
pub const NODE: [u8; 4] = [192, 168, 77, 11];
pub const NODE2: [u8; 4] = [192, 168, 78, 11];
pub const CLIENT: [u8; 4] = [192, 168, 77, 200];
pub const GATEWAY: [u8; 4] = [10, 1, 0, 1];
pub const GATEWAY_MAC: [u8; 6] = [2, 0x6d, 10, 1, 0, 1];
/// Endpoints here: 1 and 2; elsewhere: 3 and 4.
pub const A: [u8; 4] = [10, 1, 0, 11];
pub const B: [u8; 4] = [10, 1, 0, 12];
pub const C: [u8; 4] = [10, 1, 0, 13];
pub const D: [u8; 4] = [10, 1, 0, 14];
pub const VIP: [u8; 4] = [10, 1, 0, 100];
pub const VIP2: [u8; 4] = [10, 1, 0, 101];
/// An endpoint here, and a VIP, of another network.
pub const E: [u8; 4] = [10, 2, 0, 11];
pub const VIP_OTHER: [u8; 4] = [10, 2, 0, 100];
/// A VIP without backends.
pub const VIP_EMPTY: [u8; 4] = [10, 1, 0, 102];
/// This node's own address in the ingress network.
pub const INGRESS_IP: [u8; 4] = [172, 30, 0, 1];
pub const INGRESS_IP6: Ipv6Addr = six(30, 1);
/// The other node's there.
pub const OTHER_IP: [u8; 4] = [172, 30, 0, 2];
pub const OTHER_IP6: Ipv6Addr = six(30, 2);

/// The addresses of one family. Endpoint [`E`] and its network have IPv4 only.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    pub v6: bool,
    pub a: IpAddr,
    pub b: IpAddr,
    pub c: IpAddr,
    pub d: IpAddr,
    pub vip: IpAddr,
    pub vip2: IpAddr,
    pub vip_empty: IpAddr,
    pub gateway: IpAddr,
    pub node: IpAddr,
    pub node2: IpAddr,
    pub client: IpAddr,
    /// Somewhere on the way.
    pub router: IpAddr,
}

const fn six(net: u16, host: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, host)
}

const fn four(a: [u8; 4]) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(a[0], a[1], a[2], a[3]))
}

pub const V4: Family = Family {
    v6: false,
    a: four(A),
    b: four(B),
    c: four(C),
    d: four(D),
    vip: four(VIP),
    vip2: four(VIP2),
    vip_empty: four(VIP_EMPTY),
    gateway: four(GATEWAY),
    node: four(NODE),
    node2: four(NODE2),
    client: four(CLIENT),
    router: four([192, 168, 77, 1]),
};

pub const V6: Family = Family {
    v6: true,
    a: IpAddr::V6(six(1, 11)),
    b: IpAddr::V6(six(1, 12)),
    c: IpAddr::V6(six(1, 13)),
    d: IpAddr::V6(six(1, 14)),
    vip: IpAddr::V6(six(1, 100)),
    vip2: IpAddr::V6(six(1, 101)),
    vip_empty: IpAddr::V6(six(1, 102)),
    gateway: IpAddr::V6(six(1, 1)),
    node: IpAddr::V6(six(77, 11)),
    node2: IpAddr::V6(six(78, 11)),
    client: IpAddr::V6(six(77, 200)),
    router: IpAddr::V6(six(77, 1)),
};

pub fn mac(ip: [u8; 4]) -> [u8; 6] {
    Mac::for_ip(ip.into()).0
}

/// What a program did with a packet.
#[derive(Debug)]
pub struct Out {
    pub verdict: i32,
    pub bytes: Vec<u8>,
    /// Names of the counters that went up, with by how much.
    pub counted: BTreeMap<&'static str, u64>,
}

impl Out {
    /// The verdict and the counters that went up by one.
    pub fn is(&self, verdict: i32, counted: &[&str]) -> &Self {
        assert_eq!(self.verdict, verdict, "{:?}", self.counted);
        assert_eq!(self.counted.keys().copied().collect::<Vec<_>>(), {
            let mut c = counted.to_vec();
            c.sort_unstable();
            c
        });
        self
    }

    pub fn frame(&self) -> Frame {
        Frame::parse(&self.bytes)
    }

    pub fn packet(&self) -> Packet {
        Packet::parse(&self.bytes).unwrap()
    }
}

/// Where the programs are attached.
const PLACES: [(Program, &str, TcAttachType); 5] = [
    (Program::FromUplink, "up0", TcAttachType::Ingress),
    (Program::FromOverlay, "mx-1", TcAttachType::Ingress),
    (Program::FromNetwork, "mx-n", TcAttachType::Ingress),
    (Program::FromContainer, "mv-a", TcAttachType::Ingress),
    (Program::ToContainer, "mv-a", TcAttachType::Egress),
];

/// The programs at a device, as TCX links and as filters.
pub fn attached(dev: &str, way: TcAttachType) -> Vec<ProgramInfo> {
    // Kernels before 6.6 have no TCX.
    let links = SchedClassifier::query_tcx(dev, way).map_or_else(|_| Vec::new(), |(_, found)| found);
    let way = if way == TcAttachType::Egress { "egress" } else { "ingress" };
    let out = Command::new("tc").args(["filter", "show", "dev", dev, way]).output().unwrap();
    let out = String::from_utf8(out.stdout).unwrap();
    let mut words = out.split_whitespace();
    let mut ids = Vec::new();
    while let Some(word) = words.next() {
        if word == "id" {
            ids.push(words.next().unwrap().parse().unwrap());
        }
    }
    // One that goes while the list is read is none of ours.
    let all = loaded_programs().filter_map(Result::ok);
    links.into_iter().chain(all.filter(|program| ids.contains(&program.id()))).collect()
}

/// The host. Lives in namespaces of the test's thread.
pub struct World {
    pub loader: Loader,
    programs: BTreeMap<Program, ProgramInfo>,
    dir: tempfile::TempDir,
}

fn sh(line: &str) {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
}

/// `ip link set … address` wants text.
fn text(mac: [u8; 6]) -> String {
    Mac(mac).to_string()
}

impl World {
    pub fn new() -> Self {
        Self::sized(4096)
    }

    /// With room for so many flows.
    pub fn sized(flow_table_size: u32) -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        sh("ip link set lo up");
        sh(&format!(
            "ip link add up0 address {} type veth peer name far0 && ip link set up0 up",
            text(UPLINK)
        ));
        sh(&format!(
            "ip link add mx-1 address {} type vxlan id 4096 dstport 4789 local 127.0.0.1 nolearning && ip link set mx-1 up",
            text(INGRESS)
        ));
        for (dev, vni) in [("mx-n", 4097), ("mx-m", 4098)] {
            sh(&format!(
                "ip link add {dev} type vxlan id {vni} dstport 4789 local 127.0.0.1 nolearning"
            ));
        }
        for i in ["a", "b", "e"] {
            sh(&format!("ip link add mv-{i} type veth peer name c{i}"));
        }
        sh("ip link add stray type veth peer name stray1");
        let dir = tempfile::tempdir().unwrap();
        let opts = Options {
            flow_table_size,
            ..Options::new(super::pins(dir.path()))
        };
        let mut world = Self {
            loader: Loader::open(&opts).unwrap(),
            programs: BTreeMap::new(),
            dir,
        };
        world.fill();
        world
    }

    /// Finds the programs by the places where they are attached.
    fn find(&mut self) {
        for (program, dev, way) in PLACES {
            if nix::net::if_::if_nametoindex(dev).is_err() {
                continue;
            }
            let mut found = attached(dev, way);
            assert_eq!(found.len(), 1, "{program:?} at {dev}");
            self.programs.insert(program, found.remove(0));
        }
    }

    pub fn put(&mut self, row: Row) {
        self.loader.apply(&BpfAction::Row(row)).unwrap();
    }

    /// Replaces the loader, as a restart of the agent does.
    pub fn reopen(self) -> Self {
        let Self { loader, dir, programs } = self;
        drop(loader);
        let opts = Options {
            flow_table_size: 4096,
            ..Options::new(super::pins(dir.path()))
        };
        let mut world = Self {
            loader: Loader::open(&opts).unwrap(),
            programs,
            dir,
        };
        world.find();
        world
    }

    /// Replaces the loader by one to which all that is pinned is of another version; it has no rows and
    /// no hooks of its own yet.
    pub fn upgrade(self, former: &str) -> Self {
        let version = self.maps().parent().unwrap().to_owned();
        let Self { loader, dir, programs } = self;
        drop(loader);
        std::fs::rename(&version, version.with_file_name(former)).unwrap();
        let opts = Options {
            flow_table_size: 4096,
            ..Options::new(super::pins(dir.path()))
        };
        Self {
            loader: Loader::open(&opts).unwrap(),
            programs,
            dir,
        }
    }

    /// Gives it all rows and hooks, as the first pass of an agent does.
    pub fn fill(&mut self) {
        for row in tables_rows(&tables()) {
            self.put(row);
        }
        for (program, dev, _) in PLACES {
            self.loader.apply(&BpfAction::Attach(Hook { program, dev: dev.into() })).unwrap();
        }
        self.find();
    }

    /// Runs `program` as if `bytes` had come in at `dev`.
    pub fn raw(&self, program: Program, dev: &str, bytes: &[u8]) -> Out {
        self.joined(program, dev, bytes, 0)
    }

    /// As [`Self::raw`], of a frame that stands for several of `gso` bytes of data each; 0: for itself.
    pub fn joined(&self, program: Program, dev: &str, bytes: &[u8], gso: u32) -> Out {
        let before = self.loader.counters().unwrap();
        let fd = self.programs[&program].fd().unwrap();
        let ifindex = nix::net::if_::if_nametoindex(dev).unwrap();
        let (verdict, bytes, _) = test_run(fd.as_fd().as_raw_fd(), ifindex, bytes, gso, 1);
        let counted = self
            .loader
            .counters()
            .unwrap()
            .into_iter()
            .zip(before)
            .filter(|(a, b)| a.1 != b.1)
            .map(|(a, b)| (a.0, a.1 - b.1))
            .collect();
        Out { verdict, bytes, counted }
    }

    /// Runs `program` for each of many frames, and looks at nothing.
    pub fn flood(&self, program: Program, dev: &str, frames: impl Iterator<Item = Vec<u8>>) {
        let fd = self.programs[&program].fd().unwrap();
        let ifindex = nix::net::if_::if_nametoindex(dev).unwrap();
        for bytes in frames {
            test_run(fd.as_fd().as_raw_fd(), ifindex, &bytes, 0, 1);
        }
    }

    /// How long `program` takes for each of many frames, in nanoseconds: the mean of `repeat` runs, each
    /// with what the one before has made of the frame.
    pub fn timed(&self, program: Program, dev: &str, frames: impl Iterator<Item = Vec<u8>>, repeat: u32) -> Vec<u32> {
        let fd = self.programs[&program].fd().unwrap();
        let ifindex = nix::net::if_::if_nametoindex(dev).unwrap();
        frames
            .map(|bytes| test_run(fd.as_fd().as_raw_fd(), ifindex, &bytes, 0, repeat).2)
            .collect()
    }

    /// Has an address lead to another interface than its endpoint's row says, as a loader that is killed may leave it.
    pub fn lose_address(&self, ip: IpAddr, index: u32) {
        let map = aya::maps::MapData::from_pin(self.maps().join("LOCAL_BY_ADDR")).unwrap();
        let mut map: aya::maps::HashMap<_, [u8; 16], u32> = aya::maps::Map::HashMap(map).try_into().unwrap();
        let key = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        map.insert(key.octets(), index, 0).unwrap();
    }

    /// Directory of the pinned maps.
    pub fn maps(&self) -> std::path::PathBuf {
        let pins = super::pins(self.dir.path());
        let version = std::fs::read_dir(&pins).unwrap().map(|e| e.unwrap().path());
        let mut found = version.map(|v| v.join("maps")).filter(|m| m.join("FLOWS").exists());
        found.next().unwrap()
    }
    /// From a client, on the uplink.
    pub fn client(&self, frame: &Frame) -> Out {
        self.raw(Program::FromUplink, "up0", &frame.clone().eth(ROUTER, UPLINK).bytes())
    }

    /// From the other node, to an endpoint here.
    pub fn carried(&self, frame: &Frame, to: [u8; 4]) -> Out {
        self.raw(Program::FromOverlay, "mx-1", &frame.clone().eth(PEER, mac(to)).bytes())
    }

    /// From the other node, a reply.
    pub fn returned(&self, frame: &Frame) -> Out {
        self.raw(Program::FromOverlay, "mx-1", &frame.clone().eth(PEER, INGRESS).bytes())
    }

    /// From endpoint [`A`].
    pub fn container(&self, frame: &Frame) -> Out {
        self.raw(Program::FromContainer, "mv-a", &frame.clone().eth(mac(A), GATEWAY_MAC).bytes())
    }

    /// From endpoint [`A`], to an Ethernet address.
    pub fn to_mac(&self, frame: &Frame, to: [u8; 6]) -> Out {
        self.raw(Program::FromContainer, "mv-a", &frame.clone().eth(mac(A), to).bytes())
    }

    /// From an endpoint of another node, to one here, by the VXLAN device of their network.
    pub fn arrived(&self, frame: &Frame, to: [u8; 4]) -> Out {
        self.raw(Program::FromNetwork, "mx-n", &frame.clone().eth(mac(C), mac(to)).bytes())
    }

    /// To endpoint [`A`], from the bridge.
    pub fn to_container(&self, frame: &Frame) -> Out {
        self.raw(Program::ToContainer, "mv-a", &frame.clone().eth(mac(C), mac(A)).bytes())
    }
}

/// BPF_PROG_TEST_RUN: verdict, frame, and the mean time of `repeat` runs in nanoseconds.
fn test_run(fd: i32, ifindex: u32, bytes: &[u8], gso: u32, repeat: u32) -> (i32, Vec<u8>, u32) {
    let mut out = vec![0u8; bytes.len() + 256];
    // struct __sk_buff: only the fields that a test may set are not zero.
    let mut ctx = [0u32; 48];
    ctx[10] = ifindex;
    ctx[44] = gso;
    let mut attr = [0u32; 20];
    attr[0] = u32::try_from(fd).unwrap();
    attr[2] = u32::try_from(bytes.len()).unwrap();
    attr[3] = u32::try_from(out.len()).unwrap();
    let split = |at: &mut [u32], p: u64| (at[0], at[1]) = (p as u32, (p >> 32) as u32);
    split(&mut attr[4..6], bytes.as_ptr() as u64);
    split(&mut attr[6..8], out.as_mut_ptr() as u64);
    attr[8] = repeat;
    attr[10] = size_of_val(&ctx) as u32;
    split(&mut attr[12..14], ctx.as_ptr() as u64);
    // SAFETY: union bpf_attr's test member, with buffers that live until the call returns.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, 10, attr.as_mut_ptr(), size_of_val(&attr)) };
    assert_eq!(ret, 0, "BPF_PROG_TEST_RUN: {}", std::io::Error::last_os_error());
    out.truncate(attr[3] as usize);
    (attr[1] as i32, out, attr[9])
}

/// A set whose members take turns.
pub fn turn(list: &[u32]) -> lb::Pool {
    lb::Pool {
        list: list.to_vec(),
        ..lb::Pool::default()
    }
}

/// What the host is given at first.
///
/// Service 1 (80/tcp and 53/udp and 81/tcp): the endpoints elsewhere, 3 and 4. Service 2 (8080/tcp):
/// endpoint 1, here. Service 3 (9090/tcp and udp): none. Service 5 (VIP2): endpoint 1 only. Service 6
/// (VIP_OTHER): endpoint 5, in another network. All but that one have IPv6 addresses, too.
pub fn tables() -> lb::Tables {
    let in_both = |ip: [u8; 4]| (ip != E).then(|| six(1, ip[3].into()));
    let backend = |ip: [u8; 4], local| lb::Backend {
        ip4: Some(ip.into()),
        ip6: in_both(ip),
        mac: Mac(mac(ip)),
        node: None,
        local,
        accepting: true,
    };
    let local = |slot, ip: [u8; 4]| lb::Local {
        slot,
        ip4: Some(ip.into()),
        ip6: in_both(ip),
        mac: Mac(mac(ip)),
        gateway_mac: Mac(GATEWAY_MAC),
        network: 4097,
        vxlan: "mx-n".into(),
        segment: false,
        queued: false,
    };
    let other = lb::Local {
        gateway_mac: mesh_core::Mac::for_ip([10, 2, 0, 1].into()),
        network: 4098,
        vxlan: "mx-m".into(),
        ..local(5, E)
    };
    let vip = |service| lb::Vip { service, network: 4097 };
    let port = |service, target| lb::Published {
        service,
        target,
        direct: false,
    };
    let lists = [(1, vec![3, 4]), (2, vec![1]), (3, vec![]), (5, vec![1]), (7, vec![1])];
    let both = lists
        .iter()
        .flat_map(|(set, list)| [(*set, turn(list)), (set | lb::V6, turn(list))]);
    let locals = [(1 | lb::LOCAL, turn(&[])), (2 | lb::LOCAL, turn(&[1]))];
    let locals = locals
        .into_iter()
        .flat_map(|(set, list)| [(set, list.clone()), (set | lb::V6, list)]);
    lb::Tables {
        ingress_ip: Some(INGRESS_IP.into()),
        bound: Default::default(),
        sources: Default::default(),
        namespaces: Default::default(),
        ingress_mac: Mac(INGRESS),
        ingress_dev: "mx-1".into(),
        uplink: "up0".into(),
        ingress_mtu: 1450,
        node_addrs: [V4.node, V4.node2, V6.node, V6.node2].into(),
        published: [
            ((Protocol::Tcp, 80), port(1, 8000)),
            ((Protocol::Tcp, 81), port(1, 8000)),
            ((Protocol::Udp, 53), port(1, 5300)),
            ((Protocol::Tcp, 8080), port(2, 8000)),
            ((Protocol::Tcp, 8081), port(2, 8000)),
            ((Protocol::Udp, 8080), port(2, 5300)),
            ((Protocol::Tcp, 9090), port(3, 1)),
            ((Protocol::Udp, 9090), port(3, 1)),
        ]
        .into(),
        vips: [
            (VIP.into(), vip(1)),
            (VIP2.into(), vip(5)),
            (VIP_EMPTY.into(), vip(3)),
            (VIP_OTHER.into(), lb::Vip { service: 6, network: 4098 }),
            (V6.vip, vip(1 | lb::V6)),
            (V6.vip2, vip(5 | lb::V6)),
            (V6.vip_empty, vip(3 | lb::V6)),
        ]
        .into(),
        services: both.chain(locals).chain([(6, turn(&[5]))]).collect(),
        backends: [
            (1, backend(A, true)),
            (2, backend(B, true)),
            (3, backend(C, false)),
            (4, backend(D, false)),
            (5, backend(E, true)),
        ]
        .into(),
        locals: [
            ("mv-a".to_owned(), local(1, A)),
            ("mv-b".to_owned(), local(2, B)),
            ("mv-e".to_owned(), other),
        ]
        .into(),
        networks: [("mx-n".to_owned(), 4097), ("mx-m".to_owned(), 4098)].into(),
        peers: [Mac(PEER)].into(),
        nodes: [(INGRESS_IP.into(), INGRESS_IP6), (OTHER_IP.into(), OTHER_IP6)].into(),
        remotes: Default::default(),
        ranges: Default::default(),
        neighbors: Default::default(),
    }
}

/// The rows that make these tables.
pub fn tables_rows(t: &lb::Tables) -> Vec<Row> {
    let mut rows = vec![Row::Config {
        ingress_mac: t.ingress_mac,
        ingress_ip: t.ingress_ip,
        ingress_dev: t.ingress_dev.clone(),
        uplink: t.uplink.clone(),
        ingress_mtu: t.ingress_mtu,
    }];
    rows.extend(t.backends.iter().map(|(k, v)| Row::Backend(*k, Some(*v))));
    rows.extend(t.services.iter().map(|(k, v)| Row::Service(*k, Some(v.clone()))));
    rows.extend(t.locals.iter().map(|(k, v)| Row::Local(k.clone(), Some(Box::new(v.clone())))));
    rows.extend(t.networks.iter().map(|(k, v)| Row::Network(k.clone(), Some(*v))));
    rows.extend(t.published.iter().map(|(k, v)| Row::Published(*k, Some(*v))));
    rows.extend(t.vips.iter().map(|(k, v)| Row::Vip(*k, Some(*v))));
    rows.extend(t.peers.iter().map(|k| Row::Peer(*k, true)));
    rows.extend(t.nodes.iter().map(|(k, v)| Row::Node(*k, Some(*v))));
    rows.extend(t.node_addrs.iter().map(|k| Row::NodeAddr(*k, true)));
    rows
}
