//! What a pod's labels add to those of its endpoint. Called by [`super`].

use mesh_core::{labels::CNI, objects::Labels};

/// Kubernetes' own limits, in bytes: a prefix of 253, a slash and a name of 63; a value of 63.
const LONGEST_KEY: usize = 317;
const LONGEST_VALUE: usize = 63;
/// Labels of an endpoint, with those of its attachment.
const MOST: usize = 256;

/// `has`, and what of `told` it does not have yet: the attachment's own labels and a pod's annotations go
/// before its labels. Also the keys that were left out.
pub fn joined<'a>(has: &Labels, told: &'a Labels) -> (Labels, Vec<&'a str>) {
    let (mut all, mut left_out) = (has.clone(), Vec::new());
    for (key, value) in told.iter().filter(|(key, _)| !has.contains_key(*key)) {
        if all.len() < MOST && is_fine(key, value) {
            all.insert(key.clone(), value.clone());
        } else {
            left_out.push(key.as_str());
        }
    }
    (all, left_out)
}

/// Those of `meshd-cni` say which attachment an endpoint is, and are nobody else's to set.
fn is_fine(key: &str, value: &str) -> bool {
    !key.is_empty() && key.len() <= LONGEST_KEY && value.len() <= LONGEST_VALUE && !key.starts_with(CNI)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn what_the_endpoint_has_goes_before() {
        let has = labels(&[("color", "red"), ("mesh.cni/container", "c")]);
        let told = labels(&[("app", "web"), ("color", "blue"), ("empty", "")]);
        let (all, left_out) = joined(&has, &told);
        assert_eq!(
            all,
            labels(&[("app", "web"), ("color", "red"), ("empty", ""), ("mesh.cni/container", "c")])
        );
        assert!(left_out.is_empty());
        assert_eq!(joined(&all, &told).0, all, "asking again changes nothing");
    }

    #[test]
    fn what_endpoints_cannot_have_is_left_out() {
        let long = "x".repeat(LONGEST_KEY + 1);
        let told = labels(&[("mesh.cni/ifname", "eth9"), ("", "x"), (&long, "x"), ("a", &long), ("b", "fine")]);
        let (all, left_out) = joined(&Labels::new(), &told);
        assert_eq!(all, labels(&[("b", "fine")]));
        assert_eq!(left_out, ["", "a", "mesh.cni/ifname", &long]);
        let many: Labels = (0..MOST + 5).map(|n| (format!("k{n}"), String::new())).collect();
        let (all, left_out) = joined(&Labels::new(), &many);
        assert_eq!((all.len(), left_out.len()), (MOST, 5));
    }
}
