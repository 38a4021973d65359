//! Labels of endpoints that have a meaning: `meshd-cni` sets them, meshd reads them.

/// Prefix of the labels that say which attachment an endpoint is: `meshd-cni`'s alone.
pub const CNI: &str = "mesh.cni/";
/// CNI_CONTAINERID; a pod's is the id of its sandbox.
pub const CNI_CONTAINER: &str = "mesh.cni/container";
/// CNI_IFNAME.
pub const CNI_IFNAME: &str = "mesh.cni/ifname";
/// Name of the CNI configuration.
pub const CNI_NETWORK: &str = "mesh.cni/network";
/// A pod's namespace, under the key that the kubelet labels with what it makes. Podman tells none.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// A pod's name, likewise.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// A pod's UID, likewise.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
