//! What the runtime adds to the configuration for one container: `runtimeConfig`, by the conventions
//! for capabilities, and `args` (CONVENTIONS.md of containernetworking/cni).

use std::{collections::BTreeMap, net::IpAddr};

use mesh_core::objects::{Bandwidth, Labels, Port, Protocol, PublishMode, Rate};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::{failure::Failure, result::Dns};

/// A pod's annotations of this prefix become labels of its endpoints.
const LABEL: &str = "mesh.label/";

/// All of it.
#[derive(Clone, Debug, Default)]
pub struct Runtime {
    pub(super) ips: Option<Vec<String>>,
    pub(super) mac: Option<String>,
    pub(super) ports: Vec<Port>,
    pub(super) aliases: Vec<String>,
    pub(super) labels: Labels,
    pub(super) dns: Dns,
    pub(super) bandwidth: Option<Bandwidth>,
}

/// As it stands there, or as containerd writes it: go-cni gives its fields no JSON names, which the reference
/// plugins read all the same, since Go's decoder ignores case.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    #[serde(default, alias = "HostPort")]
    host_port: u32,
    #[serde(default, alias = "ContainerPort")]
    container_port: u32,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

/// As [`Mapping`]. Bits per second, and bits; 0 is none.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Limits {
    #[serde(alias = "IngressRate")]
    ingress_rate: u64,
    #[serde(alias = "IngressBurst")]
    ingress_burst: u64,
    #[serde(alias = "EgressRate")]
    egress_rate: u64,
    #[serde(alias = "EgressBurst")]
    egress_burst: u64,
}

/// Podman writes them by the name of the configuration.
#[derive(Deserialize)]
#[serde(untagged)]
enum Aliases {
    List(Vec<String>),
    ByNetwork(BTreeMap<String, Vec<String>>),
}

/// As [`Mapping`]; a list of go-cni's that is empty is null.
#[derive(Deserialize)]
struct RuntimeDns {
    #[serde(default, alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(default, alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(default, alias = "Options")]
    options: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Label {
    key: String,
    value: String,
}

impl Runtime {
    /// Takes both keys; `name` is the configuration's.
    pub(super) fn take(fields: &mut Fields<'_>, name: &str) -> Result<Self, Failure> {
        let mut out = Self::default();
        // What is in args may be ignored by plugins that do not know it.
        let mut args: Map<String, Value> = fields.take("args", "an object")?.unwrap_or_default();
        let mut cni: Map<String, Value> = Fields::new("args.", &mut args).take("cni", "an object")?.unwrap_or_default();
        let mut cni = Fields::new("args.cni.", &mut cni);
        let labels: Vec<Label> = cni.take("labels", "a list of {key, value}")?.unwrap_or_default();
        out.labels = labels.into_iter().map(|l| (l.key, l.value)).collect();
        out.ips = cni.take("ips", "a list of addresses")?;

        let mut map: Map<String, Value> = fields.take("runtimeConfig", "an object")?.unwrap_or_default();
        let mut runtime = Fields::new("runtimeConfig.", &mut map);
        if let Some(ips) = runtime.take::<Vec<String>>("ips", "a list of addresses")? {
            out.ips = Some(ips).filter(|i| !i.is_empty()).or(out.ips);
        }
        out.mac = runtime.take::<String>("mac", "an ethernet address")?.filter(|m| !m.is_empty());
        out.aliases = match runtime.take("aliases", "a list of names, or one by network")? {
            Some(Aliases::List(list)) => list,
            Some(Aliases::ByNetwork(mut all)) => all.remove(name).unwrap_or_default(),
            None => Vec::new(),
        };
        if let Some(dns) = runtime.take_object::<RuntimeDns>("dns", "an object of servers, searches, options")? {
            out.dns = Dns {
                nameservers: dns.servers.unwrap_or_default(),
                search: dns.searches.unwrap_or_default(),
                options: dns.options.unwrap_or_default(),
                ..Dns::default()
            };
        }
        let annotations: Option<Labels> = runtime.take("io.kubernetes.cri.pod-annotations", "an object of texts")?;
        for (key, value) in annotations.into_iter().flatten() {
            if let Some(key) = key.strip_prefix(LABEL) {
                out.labels.insert(key.to_owned(), value);
            }
        }
        let mappings: Vec<Mapping> = runtime
            .take("portMappings", "a list of {hostPort, containerPort, protocol, hostIP}")?
            .unwrap_or_default();
        for mapping in mappings.iter().filter(|m| m.host_port != 0) {
            out.ports.push(port(mapping)?);
        }
        out.bandwidth = bandwidth(&mut runtime, "runtimeConfig.bandwidth")?;
        runtime.done("capabilities are portMappings, ips, mac, aliases, dns and bandwidth")?;
        Ok(out)
    }
}

/// The limits of the key `bandwidth`, which is at `at`. As with the reference plugin a rate goes with a burst.
pub(super) fn bandwidth(fields: &mut Fields<'_>, at: &str) -> Result<Option<Bandwidth>, Failure> {
    let what = "an object of ingressRate, ingressBurst, egressRate and egressBurst, in bits";
    let Some(l) = fields.take_object::<Limits>("bandwidth", what)? else {
        return Ok(None);
    };
    let rate = |direction: &str, rate, burst| match (rate, burst) {
        (0, 0) => Ok(None),
        (rate, 0) => Err(Failure::Config(format!(
            "{at}: {direction}Rate {rate} has no {direction}Burst: give both, the burst in bits, such as {}",
            Rate::of(rate).burst
        ))),
        (0, burst) => Err(Failure::Config(format!(
            "{at}: {direction}Burst {burst} has no {direction}Rate: give both, the rate in bits per second"
        ))),
        (rate, burst) => Ok(Some(Rate { rate, burst })),
    };
    let bandwidth = Bandwidth {
        ingress: rate("ingress", l.ingress_rate, l.ingress_burst)?,
        egress: rate("egress", l.egress_rate, l.egress_burst)?,
    };
    bandwidth.check().map_err(|refusal| Failure::Config(refusal.message))?;
    Ok(Some(bandwidth))
}

fn port(m: &Mapping) -> Result<Port, Failure> {
    let number = |what: &str, n: u32| {
        let port = u16::try_from(n).ok().filter(|p| *p > 0);
        port.ok_or_else(|| Failure::Config(format!("portMappings: {what} {n} is not a port: use 1 to 65535")))
    };
    let protocol = match m.protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            return Err(Failure::Config(format!(
                "portMappings: protocol {other:?} is not known: use tcp or udp"
            )));
        }
    };
    let address = match m.host_ip.as_str() {
        "" => None,
        text => Some(
            text.parse::<IpAddr>()
                .map_err(|_| Failure::Config(format!("portMappings: hostIP {text:?} is not an address")))?,
        ),
    };
    Ok(Port {
        published: number("hostPort", m.host_port)?,
        target: number("containerPort", m.container_port)?,
        protocol,
        mode: PublishMode::Host,
        // An unspecified address means all.
        address: address.filter(|ip| !ip.is_unspecified()),
    })
}
