//! The network configuration on standard input (specification section 1 and section 3, "Deriving
//! request configuration"): what is known is checked, and what is not is refused by name.

mod fields;
mod runtime;

use std::{
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
};

use mesh_core::{
    Mac,
    labels::CNI,
    objects::{Bandwidth, Labels, Port},
};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::fields::Fields;
use crate::{
    call::{Args, address, is_name},
    failure::Failure,
    result::{Dns, Outcome},
    version::Version,
};

/// What every call needs of its configuration.
#[derive(Clone, Debug)]
pub struct Head {
    /// `cniVersion`
    pub version: Version,
    /// `name`, of the configuration.
    pub name: String,
    /// Where meshd listens.
    pub socket: PathBuf,
}

/// The configuration of an attachment.
#[derive(Clone, Debug)]
pub struct Config {
    /// Version, name, socket.
    pub head: Head,
    /// Names or ids of meshd's networks, one at least.
    pub networks: Vec<String>,
    /// The service that containers serve.
    pub service: Option<String>,
    /// Further names of the container.
    pub aliases: Vec<String>,
    /// Labels of its endpoints.
    pub labels: Labels,
    /// Address asked for, in the first network.
    pub ip: Option<IpAddr>,
    /// IPv6 address asked for beside an IPv4 one.
    pub ip6: Option<Ipv6Addr>,
    /// Ethernet address asked for, in the first network.
    pub mac: Option<Mac>,
    /// Ports of the host that are passed on to the container.
    pub ports: Vec<Port>,
    /// How much the container may receive and send by each of its interfaces.
    pub bandwidth: Option<Bandwidth>,
    /// What the container's resolver shall have instead of what the network says.
    pub dns: Dns,
    /// What an earlier plugin, or ADD, has answered.
    pub prev: Option<Outcome>,
}

/// An attachment that the runtime still knows.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// CNI_CONTAINERID at its ADD.
    #[serde(rename = "containerID")]
    pub container: String,
    /// CNI_IFNAME at its ADD.
    pub ifname: String,
}

/// A configuration whose head has been read.
pub struct Document {
    /// Version, name, socket.
    pub head: Head,
    rest: Map<String, Value>,
}

impl Document {
    /// Reads the head. `socket` is where meshd listens if the configuration does not say.
    ///
    /// # Errors
    /// 6 for what is not JSON of that shape, 1 for a version, 7 for a name.
    pub fn read(bytes: &[u8], socket: PathBuf) -> Result<Self, Failure> {
        let what = "the network configuration";
        let value: Value = serde_json::from_slice(bytes).map_err(|source| Failure::Decode { what, source })?;
        let Value::Object(mut rest) = value else {
            return Err(Failure::Shape(format!("{what}: it is not a JSON object")));
        };
        let mut fields = Fields::new("", &mut rest);
        let version: Option<String> = fields.take("cniVersion", "a text like \"1.1.0\"")?;
        // The first version had no such field.
        let version = version.unwrap_or_else(|| "0.1.0".to_owned());
        let version = Version::parse(&version).ok_or(Failure::Version(version))?;
        let name: Option<String> = fields.take("name", "a text")?;
        let name = name.unwrap_or_default();
        if !is_name(&name) || name.len() > 255 {
            let shown: String = name.chars().take(80).collect();
            return Err(Failure::Config(format!(
                "name {shown:?} of the network configuration is not one: use a letter or digit, then letters, digits, '_', '.' or '-'"
            )));
        }
        let socket = match fields.take::<PathBuf>("socket", "the path of meshd's socket")? {
            Some(given) if given.is_absolute() => given,
            Some(given) => return Err(Failure::Config(format!("socket {given:?} is not an absolute path"))),
            None => socket,
        };
        let head = Head { version, name, socket };
        Ok(Self { head, rest })
    }

    /// `cni.dev/valid-attachments`. libcni writes null for an empty list.
    pub fn valid_attachments(mut self) -> Result<Vec<Attachment>, Failure> {
        let key = "cni.dev/valid-attachments";
        match self.rest.get(key) {
            None => Err(Failure::Config(format!(
                "{key} is missing: without it nothing is known to be stale"
            ))),
            Some(Value::Null) => Ok(Vec::new()),
            Some(_) => {
                let list = Fields::new("", &mut self.rest).take(key, "a list of {containerID, ifname}")?;
                Ok(list.unwrap_or_default())
            }
        }
    }

    /// The whole configuration of an attachment; `args` is CNI_ARGS.
    pub fn config(mut self, args: &Args) -> Result<Config, Failure> {
        let mut fields = Fields::new("", &mut self.rest);
        // The runtime's own, and what it leaves in configurations that are no lists.
        for key in [
            "type",
            "cniVersions",
            "capabilities",
            "disableCheck",
            "disableGC",
            "loadOnlyInlinedPlugins",
        ] {
            fields.skip(key);
        }
        fields.skip_empty("ipam");
        let mut runtime = runtime::Runtime::take(&mut fields, &self.head.name)?;
        let network: Option<String> = fields.take("network", "the name of a network of meshd's")?;
        let networks: Option<Vec<String>> = fields.take("networks", "a list of names of meshd's networks")?;
        let networks = match (network, networks) {
            (Some(_), Some(_)) => return Err(Failure::Config("both network and networks are given: give one of them".to_owned())),
            (Some(one), None) => vec![one],
            (None, Some(list)) if list.is_empty() => return Err(Failure::Config("networks is empty: name one at least".to_owned())),
            (None, Some(list)) => list,
            (None, None) => vec![self.head.name.clone()],
        };
        if let Some(twice) = networks.iter().enumerate().find(|(i, n)| networks[..*i].contains(n)) {
            return Err(Failure::Config(format!("network {:?} is named twice", twice.1)));
        }
        let service = fields.take("service", "the name of a service")?;
        let mut aliases: Vec<String> = fields.take("aliases", "a list of names")?.unwrap_or_default();
        aliases.extend(std::mem::take(&mut runtime.aliases));
        aliases.sort();
        aliases.dedup();
        let mut labels: Labels = fields.take("labels", "an object of texts")?.unwrap_or_default();
        labels.extend(std::mem::take(&mut runtime.labels));
        if let Some(key) = labels.keys().find(|k| k.starts_with(CNI)) {
            return Err(Failure::Config(format!(
                "label {key:?} is meshd-cni's own: choose one that does not begin with {CNI}"
            )));
        }
        let fixed: Option<Vec<String>> = fields.take("ips", "a list of addresses")?;
        let asked = runtime.ips.take().or(args.ip.map(|ip| vec![ip.to_string()])).or(fixed);
        let (ip, ip6) = addresses(&asked.unwrap_or_default())?;
        let fixed = fields.take::<String>("mac", "an ethernet address")?;
        let mac = match runtime.mac.take() {
            Some(text) => Some(text),
            None if args.mac.is_some() => args.mac.map(|m| m.to_string()),
            None => fixed,
        };
        let mac = mac
            .map(|m| {
                m.parse()
                    .map_err(|e| Failure::Config(format!("mac {m:?} is not an ethernet address: {e}")))
            })
            .transpose()?;
        let fixed: Dns = fields
            .take_object("dns", "an object of nameservers, domain, search, options")?
            .unwrap_or_default();
        let own = runtime::bandwidth(&mut fields, "bandwidth")?;
        let bandwidth = runtime.bandwidth.or(own).filter(Bandwidth::is_limit);
        let prev = match fields.take_object::<Value>("prevResult", "a result")? {
            Some(value) => Some(serde_json::from_value(value).map_err(|source| Failure::Decode {
                what: "prevResult",
                source,
            })?),
            None => None,
        };
        fields.done("known are network, networks, service, aliases, labels, ips, mac, dns, bandwidth and socket")?;
        Ok(Config {
            head: self.head,
            networks,
            service,
            aliases,
            labels,
            ip,
            ip6,
            mac,
            ports: runtime.ports,
            bandwidth,
            dns: runtime.dns.over(fixed),
            prev,
        })
    }
}

/// One address of each family at most.
fn addresses(texts: &[String]) -> Result<(Option<IpAddr>, Option<Ipv6Addr>), Failure> {
    let (mut ip4, mut ip6) = (None, None);
    for text in texts {
        let ip = address(text).ok_or_else(|| Failure::Config(format!("ips: {text:?} is not an address")))?;
        let taken = match ip {
            IpAddr::V4(ip) => ip4.replace(ip).is_some(),
            IpAddr::V6(ip) => ip6.replace(ip).is_some(),
        };
        if taken {
            return Err(Failure::Config(format!(
                "ips: {text:?} is the second address of its family: give one of each"
            )));
        }
    }
    Ok(match (ip4, ip6) {
        (Some(ip4), ip6) => (Some(ip4.into()), ip6),
        (None, ip6) => (ip6.map(IpAddr::V6), None),
    })
}
