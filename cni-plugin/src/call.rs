//! What the runtime wants, from the environment (specification section 2, "Parameters").

use std::{collections::BTreeMap, net::IpAddr};

use mesh_core::Mac;

use crate::failure::Failure;

/// Longest container id: runtimes make file names of it.
const LONGEST_ID: usize = 255;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Attach.
    Add,
    /// Detach.
    Del,
    /// See whether it is as it was made.
    Check,
    /// Detach what the runtime no longer knows.
    Gc,
    /// Say whether ADD would work.
    Status,
    /// Say which versions are spoken.
    Version,
}

/// The parameters. Those that a verb does not require may be empty.
#[derive(Clone, Debug)]
pub struct Call {
    /// CNI_COMMAND
    pub verb: Verb,
    /// CNI_CONTAINERID
    pub container: String,
    /// CNI_NETNS
    pub netns: String,
    /// CNI_IFNAME
    pub ifname: String,
    /// CNI_ARGS, as it is.
    pub args: String,
}

impl Call {
    /// Reads variables by `get`; `None` is one that is not set.
    ///
    /// # Errors
    /// [`Failure::Environment`], which names all that is missing, or what is wrong.
    pub fn from_env(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<Self, Failure> {
        let text = |name: &str| match get(name).map(std::ffi::OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(text)) => Ok(text),
            Some(Err(_)) => Err(Failure::Environment(format!("{name} is not UTF-8"))),
        };
        let command = text("CNI_COMMAND")?;
        let (verb, required): (_, &[&str]) = match command.as_str() {
            "ADD" => (Verb::Add, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            "CHECK" => (Verb::Check, &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
            "DEL" => (Verb::Del, &["CNI_CONTAINERID", "CNI_IFNAME"]),
            "GC" => (Verb::Gc, &[]),
            "STATUS" => (Verb::Status, &[]),
            "VERSION" => (Verb::Version, &[]),
            "" => {
                return Err(Failure::Environment(
                    "CNI_COMMAND is missing: a container runtime sets it".to_owned(),
                ));
            }
            other => {
                return Err(Failure::Environment(format!(
                    "CNI_COMMAND {other:?} is unknown: use ADD, DEL, CHECK, GC, STATUS or VERSION"
                )));
            }
        };
        let missing: Vec<_> = required.iter().filter(|n| get(n).is_none_or(|v| v.is_empty())).copied().collect();
        if !missing.is_empty() {
            return Err(Failure::Environment(format!("{command} needs {}", missing.join(", "))));
        }
        let call = Self {
            verb,
            container: text("CNI_CONTAINERID")?,
            netns: text("CNI_NETNS")?,
            ifname: text("CNI_IFNAME")?,
            args: text("CNI_ARGS")?,
        };
        if required.contains(&"CNI_CONTAINERID") {
            check_container(&call.container)?;
            check_ifname(&call.ifname)?;
        }
        if required.contains(&"CNI_NETNS") && !call.netns.starts_with('/') {
            return Err(Failure::Environment(format!("CNI_NETNS {:?} is not an absolute path", call.netns)));
        }
        Ok(call)
    }
}

/// The specification's rule (section 2), and a length.
fn check_container(id: &str) -> Result<(), Failure> {
    let fine = id.len() <= LONGEST_ID && is_name(id);
    if fine {
        return Ok(());
    }
    let shown: String = id.chars().take(80).collect();
    Err(Failure::Environment(format!(
        "CNI_CONTAINERID {shown:?} is not an id: use a letter or digit, then letters, digits, '_', '.' or '-', {LONGEST_ID} at most"
    )))
}

/// A letter or digit, then letters, digits, `_`, `.` and `-`: container ids and network names.
pub fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// The kernel's rule for interface names (dev_valid_name in net/core/dev.c), and printable.
fn check_ifname(name: &str) -> Result<(), Failure> {
    let fine = (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_graphic() && !b"/:%".contains(&b))
        && !matches!(name, "." | ".." | "lo");
    if fine {
        return Ok(());
    }
    Err(Failure::Environment(format!(
        "CNI_IFNAME {name:?} is not an interface name: use 1 to 15 characters without space, '/', ':' or '%'"
    )))
}

/// What CNI_ARGS says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// IP
    pub ip: Option<IpAddr>,
    /// MAC
    pub mac: Option<Mac>,
    /// K8S_POD_NAME
    pub pod: Option<String>,
    /// K8S_POD_NAMESPACE
    pub pod_namespace: Option<String>,
    /// K8S_POD_UID
    pub pod_uid: Option<String>,
}

impl Args {
    /// Reads `K=V;K=V`. Keys that are not known are an error unless IgnoreUnknown is true, as with the
    /// reference plugins (LoadArgs in pkg/types/args.go).
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: String| Failure::Environment(format!("CNI_ARGS {why}"));
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|p| !p.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| wrong(format!("{pair:?} is not a pair: use KEY=VALUE;KEY=VALUE")))?;
            pairs.insert(key, value);
        }
        let ignore = match pairs.remove("IgnoreUnknown") {
            None => false,
            Some(v) if ["1", "true"].contains(&v.to_ascii_lowercase().as_str()) => true,
            Some(v) if ["0", "false"].contains(&v.to_ascii_lowercase().as_str()) => false,
            Some(v) => return Err(wrong(format!("IgnoreUnknown={v} is neither true nor false"))),
        };
        let mut take = |key: &str| pairs.remove(key).filter(|v| !v.is_empty()).map(str::to_owned);
        let ip = take("IP")
            .map(|v| address(&v).ok_or_else(|| wrong(format!("IP={v} is not an address"))))
            .transpose()?;
        let mac = take("MAC")
            .map(|v| v.parse().map_err(|e| wrong(format!("MAC={v}: {e}"))))
            .transpose()?;
        let args = Self {
            ip,
            mac,
            pod: take("K8S_POD_NAME"),
            pod_namespace: take("K8S_POD_NAMESPACE"),
            pod_uid: take("K8S_POD_UID"),
        };
        take("K8S_POD_INFRA_CONTAINER_ID");
        match pairs.keys().next() {
            Some(key) if !ignore => Err(wrong(format!("{key} is unknown: add IgnoreUnknown=true if that is fine"))),
            _ => Ok(args),
        }
    }
}

/// An address, with or without a prefix length, which is the network's to say.
pub fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    text.parse().ok().or_else(|| text.parse::<ipnet::IpNet>().ok().map(|n| n.addr()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(set: &[(&str, &str)]) -> Result<Call, Failure> {
        Call::from_env(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).into()))
    }

    #[test]
    fn all_that_is_missing_is_named() {
        let e = call(&[("CNI_COMMAND", "ADD"), ("CNI_IFNAME", "")]).unwrap_err();
        assert_eq!(
            (e.code(), e.to_string().as_str()),
            (4, "ADD needs CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME")
        );
        let e = call(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c")]).unwrap_err();
        assert_eq!(e.to_string(), "DEL needs CNI_IFNAME");
        assert_eq!(call(&[]).unwrap_err().code(), 4);
        assert_eq!(call(&[("CNI_COMMAND", "UPDATE")]).unwrap_err().code(), 4);
        for verb in ["GC", "STATUS", "VERSION"] {
            assert!(call(&[("CNI_COMMAND", verb)]).is_ok(), "{verb}");
        }
    }

    #[test]
    fn hostile_values() {
        let add = |id: &str, netns: &str, ifname: &str| {
            let set = [
                ("CNI_COMMAND", "ADD"),
                ("CNI_CONTAINERID", id),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", ifname),
            ];
            call(&set).map_err(|e| e.code())
        };
        assert!(add("a_B.9-", "/run/netns/x", "eth0").is_ok());
        let long = "a".repeat(300);
        for id in ["../x", "-a", ".a", "_a", "a/b", "a\nb", "a b", "ä", "a;b", long.as_str()] {
            assert_eq!(add(id, "/n", "eth0").unwrap_err(), 4, "{id}");
        }
        for ifname in ["..", ".", "lo", "a/b", "a:b", "a b", "a\nb", "a%d", "0123456789abcdef", "ü"] {
            assert_eq!(add("a", "/n", ifname).unwrap_err(), 4, "{ifname}");
        }
        for netns in ["run/netns/x", "../x", "x"] {
            assert_eq!(add("a", netns, "eth0").unwrap_err(), 4, "{netns}");
        }
    }

    #[test]
    fn arguments() {
        let all =
            Args::parse("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;X=y=z;IP=10.0.0.7/24;MAC=02:00:00:00:00:01").unwrap();
        assert_eq!(all.pod.as_deref(), Some("web-0"));
        assert_eq!(all.pod_namespace.as_deref(), Some("shop"));
        assert_eq!(
            (all.ip, all.mac.map(|m| m.to_string())),
            ("10.0.0.7".parse().ok(), Some("02:00:00:00:00:01".to_owned()))
        );
        assert_eq!(Args::parse("").unwrap(), Args::default());
        assert_eq!(Args::parse("IP=;MAC=;").unwrap(), Args::default());
        for bad in ["X", "X=1", "IP=x", "MAC=1", "IgnoreUnknown=maybe", "IgnoreUnknown=0;X=1"] {
            assert_eq!(Args::parse(bad).unwrap_err().code(), 4, "{bad}");
        }
    }
}
