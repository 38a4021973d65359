//! What the command sees in /etc and /sys: its own names and devices, the host's all else.
//!
//! Runs in a mount namespace of its own; nothing here is seen outside of it, and all of it goes with it.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{Error, setup::Setup};

/// Covered while the files are made, then uncovered again; exists everywhere.
const STAGE: &str = "/tmp";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const NSSWITCH: &str = "/etc/nsswitch.conf";
/// The cache of names of glibc's nscd, which would answer with the host's.
const NSCD: &str = "/run/nscd";
/// Where the kernel shows a namespace's devices, from within a sysfs that was mounted in it. The rest of /sys
/// has the cgroups and others' mounts, and stays.
const DEVICES: [&str; 2] = ["class/net", "devices/virtual/net"];

/// Covers the host's files with the command's own.
pub fn cover(setup: &Setup) -> Result<(), Error> {
    // What the host mounts later still appears here, and nothing of this appears there.
    change(None, "/", None, MsFlags::MS_REC | MsFlags::MS_SLAVE)?;
    change(Some("mesh-run"), STAGE, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
    resolver(&resolv_conf(setup))?;
    place("/etc/hosts", &hosts(setup))?;
    place("/etc/hostname", &format!("{}\n", setup.hostname))?;
    if let Some(text) = read(NSSWITCH)? {
        place(NSSWITCH, &nsswitch(&text))?;
    }
    if Path::new("/sys/class/net").exists() {
        devices()?;
    }
    if Path::new(NSCD).is_dir() {
        change(Some("mesh-run"), NSCD, Some("tmpfs"), MsFlags::MS_RDONLY)?;
    }
    umount2(STAGE, MntFlags::MNT_DETACH).map_err(Error::io(format!("uncover {STAGE}")))
}

fn devices() -> Result<(), Error> {
    let sys = format!("{STAGE}/sys");
    fs::create_dir(&sys).map_err(Error::io(format!("make {sys}")))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    change(Some("sysfs"), &sys, Some("sysfs"), flags)?;
    for dir in DEVICES {
        change(Some(&format!("{sys}/{dir}")), &format!("/sys/{dir}"), None, MsFlags::MS_BIND)?;
    }
    Ok(())
}

/// The resolver's file, which has to be there. Who keeps it in a directory of its own below /run, as
/// systemd-resolved does, replaces it by renaming, which takes a cover off the file; so the directory is covered.
fn resolver(text: &str) -> Result<(), Error> {
    let real = fs::canonicalize(RESOLV_CONF).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::NoFile(RESOLV_CONF),
        _ => Error::io(format!("find {RESOLV_CONF}"))(e),
    })?;
    match own_directory(&real).and_then(Path::to_str) {
        Some(dir) => {
            change(Some("mesh-run"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
            make(&real, text)
        }
        None => place(RESOLV_CONF, text),
    }
}

/// The directory of a file, if it is one of its owner's below /run.
fn own_directory(file: &Path) -> Option<&Path> {
    file.parent().filter(|dir| dir.parent().is_some_and(|up| up.starts_with("/run")))
}

/// Puts a file of its own over one of the host's, if the host has it.
fn place(path: &str, text: &str) -> Result<(), Error> {
    if !Path::new(path).exists() {
        return Ok(());
    }
    let own = format!("{STAGE}/{}", path.rsplit('/').next().unwrap_or_default());
    make(Path::new(&own), text)?;
    change(Some(&own), path, None, MsFlags::MS_BIND)
}

fn make(path: &Path, text: &str) -> Result<(), Error> {
    let make = || {
        fs::write(path, text)?;
        // Whatever umask meshctl was started with.
        fs::set_permissions(path, Permissions::from_mode(0o644))
    };
    make().map_err(Error::io(format!("make {}", path.display())))
}

fn change(source: Option<&str>, target: &str, kind: Option<&str>, flags: MsFlags) -> Result<(), Error> {
    let options = (kind == Some("tmpfs")).then_some("mode=0755,size=256k");
    mount(source, target, kind, flags, options).map_err(Error::io(format!("mount {} at {target}", source.unwrap_or("a view of its own"))))
}

fn read(path: &str) -> Result<Option<String>, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(format!("read {path}"))(e)),
    }
}

fn resolv_conf(setup: &Setup) -> String {
    format!("# made by meshctl run\nnameserver {}\noptions ndots:0\n", setup.nameserver)
}

fn hosts(setup: &Setup) -> String {
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
    let short = setup.hostname.split('.').next().unwrap_or_default();
    let mut names = vec![setup.hostname.as_str()];
    for name in [short, &setup.name] {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for address in &setup.addresses {
        text += &format!("{address} {}\n", names.join(" "));
    }
    text
}

/// Other sources of host names (systemd-resolved's, mDNS) would bypass resolv.conf.
fn nsswitch(text: &str) -> String {
    let rest = text.lines().filter(|l| !l.trim_start().starts_with("hosts:"));
    rest.chain(["hosts: files dns"]).map(|l| format!("{l}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(hostname: &str) -> Setup {
        Setup {
            hostname: hostname.to_owned(),
            name: "web-1".to_owned(),
            addresses: vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()],
            nameserver: "10.0.0.1".parse().unwrap(),
            identity: None,
        }
    }

    #[test]
    fn files_say_who_it_is() {
        let last = |hostname: &str| hosts(&setup(hostname)).lines().last().unwrap().to_owned();
        assert_eq!(last("web-1"), "fd00::5 web-1");
        assert_eq!(last("a.example"), "fd00::5 a.example a web-1");
        assert!(hosts(&setup("a")).contains("\n10.0.0.5 a web-1\n"));
        assert!(resolv_conf(&setup("a")).contains("\nnameserver 10.0.0.1\n"));
    }

    #[test]
    fn only_a_directory_of_its_own_is_covered() {
        for (file, dir) in [
            ("/run/systemd/resolve/stub-resolv.conf", Some("/run/systemd/resolve")),
            ("/run/NetworkManager/resolv.conf", Some("/run/NetworkManager")),
            ("/run/resolv.conf", None),
            ("/etc/resolv.conf", None),
            ("/etc/run/resolv.conf", None),
            ("/", None),
        ] {
            assert_eq!(own_directory(Path::new(file)), dir.map(Path::new), "{file}");
        }
    }

    #[test]
    fn only_files_and_dns_know_hosts() {
        let text = "passwd: files systemd\n hosts:  files resolve [!UNAVAIL=return] dns\n# hosts: x\n";
        assert_eq!(nsswitch(text), "passwd: files systemd\n# hosts: x\nhosts: files dns\n");
    }
}
