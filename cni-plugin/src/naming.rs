//! How a container is called in the cluster, and by which labels it is found again.

use mesh_core::{
    labels::{CNI_CONTAINER, CNI_IFNAME, CNI_NETWORK, POD_NAME, POD_NAMESPACE, POD_UID},
    objects::Labels,
};

use crate::call::{Args, Call};

/// Longest DNS label (RFC 1035 section 2.3.4).
const LONGEST: usize = 63;

/// The labels of all endpoints of one configuration.
pub fn network_labels(name: &str) -> Labels {
    Labels::from([(CNI_NETWORK.to_owned(), name.to_owned())])
}

/// The labels of an attachment: CNI_CONTAINERID and CNI_IFNAME tell it from the configuration's others.
pub fn attachment_labels(name: &str, container: &str, ifname: &str) -> Labels {
    let mut labels = network_labels(name);
    labels.insert(CNI_CONTAINER.to_owned(), container.to_owned());
    labels.insert(CNI_IFNAME.to_owned(), ifname.to_owned());
    labels
}

/// Container and interface name of an endpoint that this program made.
pub fn attachment_of(labels: &Labels) -> Option<(&str, &str)> {
    Some((labels.get(CNI_CONTAINER)?, labels.get(CNI_IFNAME)?))
}

/// What the runtime says of a pod, as labels.
pub fn pod_labels(args: &Args) -> Labels {
    let pairs = [
        (POD_NAME, &args.pod),
        (POD_NAMESPACE, &args.pod_namespace),
        (POD_UID, &args.pod_uid),
    ];
    pairs.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v.clone()?))).collect()
}

/// The endpoint's name: the pod's or container's name where the runtime tells one, else the id.
pub fn endpoint_name(call: &Call, args: &Args) -> String {
    match &args.pod {
        Some(pod) => label(pod),
        // As short as people and other programs write it.
        None if call.container.len() == 64 && call.container.bytes().all(|b| b.is_ascii_hexdigit()) => call.container[..12].to_owned(),
        None => label(&call.container),
    }
}

/// The name where another namespace's pod has that of [`endpoint_name`] in the same network.
pub fn qualified_name(args: &Args) -> Option<String> {
    Some(label(&format!("{}-{}", args.pod.as_ref()?, args.pod_namespace.as_ref()?)))
}

/// `text` as a DNS label: other characters become hyphens, and one that is too long is cut and ends
/// with a hash of all of it.
fn label(text: &str) -> String {
    let plain: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let plain = plain.trim_matches('-');
    match plain.len() {
        0 => format!("x{:08x}", hash(text)),
        1..=LONGEST => plain.to_owned(),
        _ => format!("{}-{:08x}", plain[..LONGEST - 9].trim_end_matches('-'), hash(text)),
    }
}

/// FNV-1a: stable over releases, which std's hashers are not.
pub fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use mesh_core::spec::check_name;

    use super::*;
    use crate::call::Verb;

    fn name(container: &str, args: &str) -> String {
        let call = Call {
            verb: Verb::Add,
            container: container.to_owned(),
            netns: String::new(),
            ifname: String::new(),
            args: String::new(),
        };
        endpoint_name(&call, &Args::parse(args).unwrap())
    }

    #[test]
    fn names_are_what_people_write() {
        assert_eq!(name("default-web1", ""), "default-web1");
        assert_eq!(name(&"0123456789abcdef".repeat(4), ""), "0123456789ab");
        assert_eq!(name("c", "K8S_POD_NAME=web-0;K8S_POD_NAMESPACE=shop"), "web-0");
        assert_eq!(name("my_app.1", ""), "my-app-1");
    }

    #[test]
    fn every_name_is_a_dns_label() {
        let long = "p".repeat(300);
        let (a, b) = (format!("{long}a"), format!("{long}b"));
        assert_ne!(label(&a), label(&b));
        for text in ["../", "a\nb", "-", "", "ä", a.as_str(), "x.", ".x"] {
            assert!(check_name("endpoint", &label(text)).is_ok(), "{text:?}: {:?}", label(text));
        }
    }
}
