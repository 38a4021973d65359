//! The port specifications of `--publish`: `[[ADDRESS:]PUBLISHED:]TARGET[/tcp|udp]`, or
//! `published=[ADDRESS:]PORT,target=,protocol=,mode=` as Docker's long form. And back, for tables.

use std::net::{IpAddr, Ipv6Addr};

use mesh_api::rest::PortView;
use mesh_core::{
    Refusal,
    objects::{Port, Protocol, PublishMode},
    spec::ServiceSpec,
};

const HINT: &str = "use [[ADDRESS:]PUBLISHED:]TARGET[/tcp|udp], like 8888:80, 53:5353/udp or 192.168.77.11:8888:80";

/// Reads a specification. A port published without a number has 0, which asks for a free one.
pub fn parse(spec: &str) -> Result<Port, String> {
    if spec.is_empty() {
        return Err(format!("it is empty: {HINT}"));
    }
    if spec.contains('=') { long(spec) } else { short(spec) }
}

fn short(spec: &str) -> Result<Port, String> {
    let (ports, protocol) = spec.split_once('/').map_or((spec, "tcp"), |(ports, protocol)| (ports, protocol));
    let protocol = parse_protocol(protocol)?;
    let ((address, published), target) = match ports.rsplit_once(':') {
        Some((published, target)) => (place(published)?, target),
        None => ((None, 0), ports),
    };
    Ok(Port {
        published,
        target: number("target", target)?,
        protocol,
        mode: PublishMode::Ingress,
        address,
    })
}

/// `[ADDRESS:]PORT`; an IPv6 address stands in brackets.
fn place(text: &str) -> Result<(Option<IpAddr>, u16), String> {
    let Some((address, port)) = text.rsplit_once(':') else {
        return Ok((None, number("published", text)?));
    };
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']'));
    let address = match bare {
        Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6),
        None if address.contains(':') => return Err(format!("address {address} is not in brackets: use [{address}]:{port}")),
        None => address.parse(),
    };
    let address = address.map_err(|_| format!("{text:?} does not begin with an address of a node: {HINT}"))?;
    Ok((Some(address), number("published", port)?))
}

fn long(spec: &str) -> Result<Port, String> {
    let (mut published, mut target, mut protocol, mut mode) = (None, None, None, None);
    for field in spec.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("{field:?} is not KEY=VALUE: use published=,target=,protocol=,mode="))?;
        let twice = match key {
            "published" => published.replace(place(value)?).is_some(),
            "target" => target.replace(number("target", value)?).is_some(),
            "protocol" => protocol.replace(parse_protocol(value)?).is_some(),
            "mode" => mode.replace(parse_mode(value)?).is_some(),
            _ => return Err(format!("{key:?} is not known: use published=,target=,protocol=,mode=")),
        };
        if twice {
            return Err(format!("{key} is given twice: give it once"));
        }
    }
    let (address, published) = published.unwrap_or((None, 0));
    Ok(Port {
        published,
        target: target.ok_or("it has no target port: add target=PORT")?,
        protocol: protocol.unwrap_or(Protocol::Tcp),
        mode: mode.unwrap_or(PublishMode::Ingress),
        address,
    })
}

fn number(what: &str, text: &str) -> Result<u16, String> {
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if text.split_once('-').is_some_and(|(from, to)| digits(from) && digits(to)) {
        return Err(format!("port ranges such as {text} are not carried: publish each port by itself"));
    }
    match text.parse() {
        Ok(port @ 1..) if digits(text) => Ok(port),
        Ok(0) if what == "published" => Err("published port 0 is not a port: use 1 to 65535, or leave it out for a free one".to_owned()),
        _ if digits(text) => Err(format!("{what} port {text} is not a port: use 1 to 65535")),
        _ => Err(format!("{what} port {text:?} is not a number: {HINT}")),
    }
}

fn parse_protocol(word: &str) -> Result<Protocol, String> {
    match word.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Err("protocol sctp is not carried: use tcp or udp".to_owned()),
        _ => Err(format!("protocol {word:?} is not known: use tcp or udp")),
    }
}

fn parse_mode(word: &str) -> Result<PublishMode, String> {
    match word {
        "ingress" => Ok(PublishMode::Ingress),
        "host" => Ok(PublishMode::Host),
        _ => Err(format!("mode {word:?} is not known: use ingress or host")),
    }
}

/// Reads the specification of a port that a container publishes for itself: its own host answers it.
pub fn parse_own(spec: &str) -> Result<Port, String> {
    let port = parse(spec)?;
    if spec.split(',').any(|field| field == "mode=ingress") {
        return Err("a container's own port is answered by its host only: leave mode=ingress out, or publish it with a service".to_owned());
    }
    Ok(Port {
        mode: PublishMode::Host,
        ..port
    })
}

/// What `--publish-rm` names: a target port as with Docker (`80`, `80/udp`), or a whole
/// specification (`8888:80`, `192.168.77.11:8888:80`).
pub fn matches(wanted: &Port, port: &Port) -> bool {
    let published = wanted.published == 0 || wanted.published == port.published;
    let address = wanted.address.is_none() || wanted.address == port.address;
    (wanted.target, wanted.protocol) == (port.target, port.protocol) && published && address
}

/// Publishes more; what a service publishes already stays as it is, as with Docker.
///
/// # Errors
/// A conflict when its published port is another one's of the service.
pub fn add(spec: &mut ServiceSpec, more: Vec<Port>) -> Result<(), Refusal> {
    for port in more {
        // Without a number each is another one.
        if port.published != 0 && spec.ports.contains(&port) {
            continue;
        }
        let alike = |p: &&Port| (p.published, p.protocol) == (port.published, port.protocol);
        let meets = |p: &&Port| p.address.is_none() || port.address.is_none() || p.address == port.address;
        if let Some(other) = spec.ports.iter().find(|p| port.published != 0 && alike(p) && meets(p)) {
            return Err(Refusal::conflict(format!(
                "service {:?} publishes {} already: publish {} at another port, or give --publish-rm {}:{}/{} too",
                spec.name,
                display(&PortView::from(other)),
                display(&PortView::from(&port)),
                other.published,
                other.target,
                other.protocol.as_str()
            )));
        }
        spec.ports.push(port);
    }
    Ok(())
}

/// For tables: `8888->80/tcp`, `192.168.77.11:8888->80/tcp`, `514->514/udp@host`.
pub fn display(port: &PortView) -> String {
    let at = match port.address {
        None => String::new(),
        Some(IpAddr::V4(v4)) => format!("{v4}:"),
        Some(IpAddr::V6(v6)) => format!("[{v6}]:"),
    };
    let host = if port.mode == PublishMode::Host { "@host" } else { "" };
    format!("{at}{}->{}/{}{host}", port.published, port.target, port.protocol.as_str())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn port(published: u16, target: u16, protocol: Protocol) -> Port {
        Port {
            published,
            target,
            protocol,
            mode: PublishMode::Ingress,
            address: None,
        }
    }

    #[test]
    fn forms() {
        for (spec, published, target, protocol) in [
            ("80", 0, 80, Protocol::Tcp),
            ("8888:80", 8888, 80, Protocol::Tcp),
            ("53:5353/udp", 53, 5353, Protocol::Udp),
            ("53/UDP", 0, 53, Protocol::Udp),
            ("65535:1/tcp", 65535, 1, Protocol::Tcp),
            ("target=80", 0, 80, Protocol::Tcp),
            ("published=8888,target=80,protocol=udp,mode=ingress", 8888, 80, Protocol::Udp),
        ] {
            assert_eq!(parse(spec), Ok(port(published, target, protocol)), "{spec}");
        }
    }

    #[test]
    fn places() {
        let four: IpAddr = [192, 168, 77, 11].into();
        let six = IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x11));
        let at = |address, published, target| Port {
            address: Some(address),
            ..port(published, target, Protocol::Tcp)
        };
        for (spec, want) in [
            ("192.168.77.11:8080:80", at(four, 8080, 80)),
            ("published=192.168.77.11:8080,target=80", at(four, 8080, 80)),
            ("[fd77::11]:8080:80/tcp", at(six, 8080, 80)),
            ("published=[fd77::11]:8080,target=80", at(six, 8080, 80)),
            (
                "published=8080,target=80,mode=host",
                Port {
                    mode: PublishMode::Host,
                    ..port(8080, 80, Protocol::Tcp)
                },
            ),
        ] {
            assert_eq!(parse(spec), Ok(want.clone()), "{spec}");
            let shown = display(&PortView::from(&want));
            assert!(shown.contains("8080->80/tcp"), "{shown}");
            assert!(matches(&parse("80").unwrap_or_else(|e| panic!("{e}")), &want));
            assert_eq!(
                matches(&want, &port(8080, 80, Protocol::Tcp)),
                want.address.is_none(),
                "the port at every address is another"
            );
        }
    }

    #[test]
    fn refusals_say_why() {
        for (spec, words) in [
            ("", "empty"),
            ("0", "target port 0"),
            ("8888:0", "target port 0"),
            ("0:80", "published port 0"),
            ("published=0,target=80", "published port 0"),
            ("70000:80", "published port 70000 is not a port"),
            ("8888:70000", "target port 70000 is not a port"),
            ("99999999999999999999", "is not a port"),
            ("8000-8010:80", "ranges"),
            ("published=8000-8010,target=80", "ranges"),
            ("80/sctp", "sctp is not carried"),
            ("target=80,protocol=sctp", "sctp is not carried"),
            ("80/icmp", "tcp or udp"),
            ("80/", "tcp or udp"),
            ("fd00::1:80:80", "brackets"),
            ("h1:80:80", "address"),
            ("192.168.77.300:80:80", "address"),
            ("[192.168.77.11]:80:80", "address"),
            ("published=192.168.77.11:,target=80", "not a number"),
            ("published=192.168.77.11,target=80", "not a number"),
            (":80", "not a number"),
            ("80:", "not a number"),
            ("+80", "not a number"),
            ("-80", "not a number"),
            (" 80", "not a number"),
            ("http", "not a number"),
            ("published=80", "no target"),
            ("target=80,target=81", "twice"),
            ("target=80,mode=global", "ingress or host"),
            ("target=80,colour=red", "not known"),
            ("target=80,", "KEY=VALUE"),
        ] {
            let refusal = parse(spec).err();
            assert!(refusal.as_ref().is_some_and(|r| r.contains(words)), "{spec}: {refusal:?}");
        }
    }

    #[test]
    fn removal_matches_as_docker_does() {
        let p = port(8888, 80, Protocol::Tcp);
        let hits = |spec: &str| matches(&parse(spec).unwrap_or_else(|e| panic!("{e}")), &p);
        assert!(hits("80") && hits("8888:80") && hits("80/tcp"));
        assert!(!hits("80/udp") && !hits("8889:80") && !hits("8888"));
    }

    proptest! {
        #[test]
        fn both_forms_read_back(published in 1u16.., target in 1u16.., udp: bool, auto: bool) {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let want = port(if auto { 0 } else { published }, target, protocol);
            let p = protocol.as_str();
            let (short, long) = if auto {
                (format!("{target}/{p}"), format!("protocol={p},target={target}"))
            } else {
                (format!("{published}:{target}/{p}"), format!("target={target},published={published},protocol={p}"))
            };
            prop_assert_eq!(parse(&short), Ok(want.clone()));
            prop_assert_eq!(parse(&long), Ok(want));
        }

        #[test]
        fn never_panics_and_never_takes_port_zero(spec in "\\PC*|[0-9:/,=a-z-]{0,24}") {
            if let Ok(port) = parse(&spec) {
                prop_assert!(port.target != 0);
            }
        }

        #[test]
        fn every_number_that_is_no_port_is_refused(n in 65536u64..) {
            prop_assert!(parse(&n.to_string()).is_err());
            let published = format!("{n}:80");
            prop_assert!(parse(&published).is_err());
        }
    }
}
