//! What a containerd needs that runs pods: its configuration, and an image in the place of one to be pulled.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{Result, image};

/// The image of [`archive`], by its name in containerd.
pub const IMAGE: &str = "localhost/lab:1";

/// Its configuration: plugins below `at`/bin, their configuration in `at`/net.d; `more` lines for the CRI plugin.
pub fn config(at: &str, more: &str) -> String {
    format!(
        r#"version = 2
[plugins."io.containerd.internal.v1.opt"]
path = "{at}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
# Lowering it is a privilege that not every machine gives.
restrict_oom_score_adj = true
{more}
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{at}/bin"
conf_dir = "{at}/net.d"
"#
    )
}

/// The files of [`image`] as an image of one layer, in the form of `docker save`, made in `dir`. It sleeps,
/// which is what pods' sandboxes do.
pub fn archive(dir: &Path) -> Result<PathBuf> {
    let layer = image()?;
    let digest = Sha256::digest(fs::read(&layer)?)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json!({
        "architecture": arch, "os": "linux", "config": {"Entrypoint": ["/bin/sleep", "100000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
    fs::create_dir_all(dir)?;
    fs::write(dir.join("config.json"), config.to_string())?;
    fs::write(dir.join("manifest.json"), manifest.to_string())?;
    fs::copy(&layer, dir.join("layer.tar"))?;
    fs::remove_file(layer)?;
    let archive = dir.join("image.tar");
    let done = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .arg("-cf")
        .arg(&archive)
        .args(["manifest.json", "config.json", "layer.tar"])
        .status()?;
    if done.success() { Ok(archive) } else { Err("tar failed".into()) }
}
