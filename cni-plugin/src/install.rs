//! `meshd-cni install` and `uninstall`: puts the program and a configuration where container runtimes
//! look for them, each in one step, so that no runtime ever sees half of one.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

use crate::{call::is_name, note};

/// The program's name in a configuration, and in the directory of plugins.
const TYPE: &str = "meshd-cni";

/// The CNI plugin of meshd. Container runtimes run it without arguments; by hand it installs itself.
#[derive(Debug, Parser)]
#[command(name = TYPE, version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put this program and a configuration where container runtimes look
    Install(Install),
    /// Remove both
    Uninstall(Places),
}

#[derive(Debug, Args)]
struct Places {
    /// Directory of plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    bin_dir: PathBuf,
    /// Directory of configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    conf_dir: PathBuf,
    /// Name of the configuration's file
    #[arg(long, value_name = "FILE", default_value = "10-mesh.conflist")]
    conf_file: String,
}

#[derive(Debug, Args)]
struct Install {
    #[command(flatten)]
    places: Places,
    /// Network of meshd's that containers are attached to
    #[arg(long, value_name = "NAME", default_value = "mesh")]
    network: String,
    /// Service that they serve
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Name of the configuration, by which runtimes call it; else the network's
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// meshd's socket, where it is not /run/meshd/meshd.sock
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Why nothing was installed, or removed.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{what} {value:?} is not valid: {want}")]
    Value {
        what: &'static str,
        value: String,
        want: &'static str,
    },
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Does what the command line says.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Nothing can be done about a stderr that takes no more.
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let done = match &cli.command {
        Command::Install(args) => install(args),
        Command::Uninstall(places) => uninstall(places),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            note(&e.to_string());
            ExitCode::from(if matches!(e, Error::Value { .. }) { 2 } else { 1 })
        }
    }
}

fn install(args: &Install) -> Result<(), Error> {
    let conf = conf_path(&args.places)?;
    let name = args.name.as_ref().unwrap_or(&args.network);
    if !is_name(name) {
        return Err(Error::Value {
            what: "name",
            value: name.clone(),
            want: "use a letter or digit, then letters, digits, '_', '.' or '-'",
        });
    }
    if let Some(socket) = args.socket.as_ref().filter(|s| !s.is_absolute()) {
        return Err(Error::Value {
            what: "socket",
            value: socket.display().to_string(),
            want: "use an absolute path",
        });
    }
    // The program first: a configuration without it would make runtimes fail.
    let own = PathBuf::from("/proc/self/exe");
    let program = fs::read(&own).map_err(file("read", &own))?;
    put(&args.places.bin_dir, &args.places.bin_dir.join(TYPE), &program, 0o755)?;
    let document = format!("{:#}\n", conflist(name, args));
    let former = configured(&conf).filter(|former| former != name);
    put(&args.places.conf_dir, &conf, document.as_bytes(), 0o644)?;
    if let Some(former) = former {
        let conf = conf.display();
        note(&format!(
            "{conf} was the configuration {former:?} and is {name:?} now: to have both, install {former:?} again with --conf-file"
        ));
    }
    Ok(())
}

/// The name of the configuration in a file, if that is one.
fn configured(conf: &Path) -> Option<String> {
    let document: Value = serde_json::from_slice(&fs::read(conf).ok()?).ok()?;
    Some(document["name"].as_str()?.to_owned())
}

fn uninstall(places: &Places) -> Result<(), Error> {
    // In the other order, for the same reason.
    for path in [conf_path(places)?, places.bin_dir.join(TYPE)] {
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file("remove", &path)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn conf_path(places: &Places) -> Result<PathBuf, Error> {
    let name = &places.conf_file;
    if !is_name(name) || !name.ends_with(".conflist") {
        return Err(Error::Value {
            what: "configuration file",
            value: name.clone(),
            want: "use a file name that ends with .conflist",
        });
    }
    Ok(places.conf_dir.join(name))
}

/// The configuration. Runtimes of before 1.1.0 read the first version, later ones choose.
fn conflist(name: &str, args: &Install) -> Value {
    let mut plugin = json!({
        "type": TYPE,
        "network": args.network,
        "capabilities": {
            "portMappings": true,
            "ips": true,
            "mac": true,
            "aliases": true,
            "bandwidth": true,
            "io.kubernetes.cri.pod-annotations": true,
        },
    });
    if let Some(service) = &args.service {
        plugin["service"] = json!(service);
    }
    if let Some(socket) = &args.socket {
        plugin["socket"] = json!(socket);
    }
    json!({"cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": name, "plugins": [plugin]})
}

/// Writes a file beside its place and moves it there.
fn put(dir: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    fs::create_dir_all(dir).map_err(file("make", dir))?;
    let part = tempfile::Builder::new()
        .prefix(".meshd-cni.")
        .tempfile_in(dir)
        .map_err(file("write in", dir))?;
    fs::write(part.path(), bytes).map_err(file("write", part.path()))?;
    fs::set_permissions(part.path(), fs::Permissions::from_mode(mode)).map_err(file("set the mode of", part.path()))?;
    part.as_file().sync_all().map_err(file("write", part.path()))?;
    part.persist(path).map_err(|e| file("replace", path)(e.error))?;
    Ok(())
}

fn file<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::File {
        what,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cli(args: &[&str]) -> Result<(), Error> {
        match Cli::try_parse_from([&[TYPE], args].concat()).unwrap().command {
            Command::Install(args) => install(&args),
            Command::Uninstall(places) => uninstall(&places),
        }
    }

    #[test]
    fn installs_whole_files_and_removes_them() {
        let dir = tempfile::tempdir().unwrap();
        let (bin, conf) = (dir.path().join("opt/bin"), dir.path().join("etc/net.d"));
        let places = ["--bin-dir", bin.to_str().unwrap(), "--conf-dir", conf.to_str().unwrap()];
        for _ in 0..2 {
            cli(&[&["install"], &places[..], &["--network", "shop", "--service", "web"]].concat()).unwrap();
        }
        let mode = fs::metadata(bin.join(TYPE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        let list: Value = serde_json::from_slice(&fs::read(conf.join("10-mesh.conflist")).unwrap()).unwrap();
        assert_eq!((&list["name"], &list["plugins"][0]["network"]), (&json!("shop"), &json!("shop")));
        assert_eq!(list["plugins"][0]["service"], "web");
        assert_eq!(configured(&conf.join("10-mesh.conflist")).as_deref(), Some("shop"));
        assert_eq!(configured(&bin.join(TYPE)), None, "no configuration");
        for dir in [&bin, &conf] {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 1, "nothing half-written");
        }
        for _ in 0..2 {
            cli(&[&["uninstall"], &places[..]].concat()).unwrap();
        }
        assert!(!bin.join(TYPE).exists() && !conf.join("10-mesh.conflist").exists());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        for bad in [
            ["--conf-file", "../x.conflist"],
            ["--conf-file", "x.json"],
            ["--name", "a/b"],
            ["--socket", "x"],
        ] {
            let e = cli(&[&["install", "--bin-dir", at, "--conf-dir", at], &bad[..]].concat()).unwrap_err();
            assert!(matches!(e, Error::Value { .. }), "{bad:?}: {e}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
