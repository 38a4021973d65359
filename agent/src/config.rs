//! What meshd is told when it starts: the command line, then the configuration file, then defaults.
//! Parsed and checked whole before anything is opened or bound.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{OsStringValueParser, TypedValueParser},
};
use ipnet::IpNet;
use mesh_core::spec::check_name;
use serde::Deserialize;

use crate::docker::engine::Engine;

/// The network agent of a host: overlay networks, published ports on every node, service names.
///
/// Started once per host. `meshctl init` on the first host makes a cluster, `meshctl join` on the
/// others joins it. Stopping meshd leaves the data plane in place; `meshd cleanup` removes it.
#[derive(Parser, Debug)]
#[command(name = "meshd", version, args_conflicts_with_subcommands = false)]
pub struct Cli {
    /// What to do; without it, run the agent.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings.
    #[command(flatten)]
    pub flags: Flags,
}

/// Subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Remove what meshd made on this host: links, routes, packet filter, BPF pins, sockets.
    ///
    /// meshd must not be running. The data directory goes too once the host has left its cluster;
    /// before that it is kept, because a manager's copy of the cluster's state is in it.
    Cleanup {
        /// Also remove the data directory of a host that still belongs to a cluster.
        #[arg(long)]
        force: bool,
    },
    /// What meshd starts for Docker's plugin socket, its standard input.
    #[command(hide = true)]
    DockerFront {
        /// Where that socket is.
        plugin: PathBuf,
        /// meshd's own.
        to: PathBuf,
    },
    /// Write the manual pages.
    Man {
        /// Directory to write them to.
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where the metrics are served unless told otherwise.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9477);

/// What `--metrics` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum MetricsAddr {
    /// Nowhere.
    Off,
    /// There.
    At(SocketAddr),
}

impl FromStr for MetricsAddr {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "off" => Ok(Self::Off),
            _ => s
                .parse()
                .map(Self::At)
                .map_err(|_| format!("{s:?} is not where metrics can be served: use ADDRESS:PORT, like 127.0.0.1:9477, or off")),
        }
    }
}

impl TryFrom<String> for MetricsAddr {
    type Error = String;

    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

/// Where Prometheus reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsAt {
    /// The address.
    pub addr: SocketAddr,
    /// The operator named it: meshd does not run without it.
    pub asked: bool,
}

/// Where dockerd looks for the driver `mesh`.
const DOCKER_PLUGIN: &str = "/run/docker/plugins/mesh.sock";

/// Where container runtimes that run pods listen: containerd, K3s' containerd, CRI-O.
const CRI_SOCKETS: [&str; 3] = [
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
];

/// The socket of Docker's driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DockerPlugin {
    /// Where.
    pub path: PathBuf,
    /// The operator named it: meshd does not run without it.
    pub asked: bool,
}

impl DockerPlugin {
    /// What Docker calls it: by its socket's name (pkg/plugins in moby).
    pub fn driver(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// clap's own parser of paths refuses an empty one, which here says "none".
fn path_or_none() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

/// Settings, each as a flag, an environment variable or a key of the configuration file.
#[derive(Args, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flags {
    /// Configuration file (TOML, keys as the flags below).
    #[arg(long, value_name = "FILE", global = true)]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of identity, ledger and cluster state [default: /var/lib/meshd]
    #[arg(long, value_name = "DIR", env = "MESHD_DATA_DIR", global = true)]
    pub data_dir: Option<PathBuf>,
    /// Directory of the socket meshd.sock [default: /run/meshd]
    #[arg(long, value_name = "DIR", env = "MESHD_RUN_DIR", global = true)]
    pub run_dir: Option<PathBuf>,
    /// Directory on a BPF filesystem where programs and maps are pinned [default: /sys/fs/bpf/meshd]
    #[arg(long, value_name = "DIR", env = "MESHD_BPFFS", global = true)]
    pub bpffs: Option<PathBuf>,
    /// Device that clients of published ports arrive on [default: that of the data-path address]
    #[arg(long, value_name = "IF")]
    pub uplink: Option<String>,
    /// Host name in the cluster [default: the host's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Port of the control plane [default: 2377]
    #[arg(long, value_name = "PORT")]
    pub control_port: Option<u16>,
    /// Where the resolvers for names outside the mesh are found [default: /etc/resolv.conf]
    #[arg(long, value_name = "FILE")]
    pub resolv_conf: Option<PathBuf>,
    /// Entries of the flow tables [default: 262144]
    #[arg(long, value_name = "N")]
    pub flow_table_size: Option<u32>,
    /// Socket of the driver for Docker's networks; empty: none [default: /run/docker/plugins/mesh.sock]
    #[arg(long, value_name = "PATH", env = "MESHD_DOCKER_PLUGIN", value_parser = path_or_none())]
    pub docker_plugin: Option<PathBuf>,
    /// Socket at which Docker is asked about its containers [default: /var/run/docker.sock]
    #[arg(long, value_name = "PATH", env = "MESHD_DOCKER_SOCKET")]
    pub docker_socket: Option<PathBuf>,
    /// Socket at which Podman is asked for containers that Docker does not know [default: /run/podman/podman.sock]
    #[arg(long, value_name = "SOCKET")]
    pub podman_socket: Option<PathBuf>,
    /// CRI socket at which a container runtime is asked for its pods' labels; empty: none [default: containerd's and CRI-O's]
    #[arg(long, value_name = "PATH", env = "MESHD_CRI_SOCKET", value_parser = path_or_none())]
    pub cri_socket: Option<PathBuf>,
    /// Where Prometheus reads this host's metrics: ADDRESS:PORT or off [default: 127.0.0.1:9477]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<MetricsAddr>,
    /// Where the catalog is served as Consul's HTTP API, for reading: ADDRESS:PORT [default: nowhere]
    #[arg(long, value_name = "ADDR")]
    pub consul_http: Option<SocketAddr>,
    /// What to log, as for tracing's EnvFilter [default: info]
    #[arg(long, value_name = "FILTER", env = "MESHD_LOG")]
    pub log: Option<String>,
    /// How to log [default: text]
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
}

/// What to log, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// See [`Flags::log`].
    pub filter: String,
    /// See [`Flags::log_format`].
    pub format: LogFormat,
}

impl Logging {
    /// As the flags say, else as the file does.
    pub fn of(flags: &Flags, file: &Flags) -> Self {
        Self {
            filter: flags.log.as_ref().or(file.log.as_ref()).map_or_else(|| "info".into(), Clone::clone),
            format: flags.log_format.or(file.log_format).unwrap_or_default(),
        }
    }

    /// The flags that say this.
    pub fn flags(&self) -> [String; 2] {
        let format = match self.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        [format!("--log={}", self.filter), format!("--log-format={format}")]
    }
}

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// See [`Flags::data_dir`].
    pub data_dir: PathBuf,
    /// See [`Flags::run_dir`].
    pub run_dir: PathBuf,
    /// See [`Flags::bpffs`].
    pub bpffs: PathBuf,
    /// See [`Flags::uplink`].
    pub uplink: Option<String>,
    /// See [`Flags::hostname`].
    pub hostname: String,
    /// See [`Flags::control_port`].
    pub control_port: u16,
    /// See [`Flags::resolv_conf`].
    pub resolv_conf: PathBuf,
    /// See [`Flags::flow_table_size`].
    pub flow_table_size: u32,
    /// See [`Flags::docker_plugin`]; `None` when it is off.
    pub docker_plugin: Option<DockerPlugin>,
    /// See [`Flags::docker_socket`].
    pub docker_socket: PathBuf,
    /// See [`Flags::podman_socket`].
    pub podman_socket: PathBuf,
    /// See [`Flags::cri_socket`]: all that are asked.
    pub cri_sockets: Vec<PathBuf>,
    /// See [`Flags::metrics`]; `None` when they are off.
    pub metrics: Option<MetricsAt>,
    /// See [`Flags::consul_http`].
    pub consul_http: Option<SocketAddr>,
    /// What to log, and how.
    pub logging: Logging,
}

/// A setting that can not be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can not be read.
    #[error("cannot read the configuration file {}", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is not what it should be.
    #[error("configuration file {}: {}", .0.display(), .1.trim().replace('\n', " "))]
    Parse(PathBuf, String),
    /// A value can not be.
    #[error("{0}")]
    Value(String),
}

impl Config {
    /// Merges flags, file and defaults, and checks the result.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read(path)?,
            None => Flags::default(),
        };
        let logging = Logging::of(&flags, &file);
        let dir = |flag: Option<PathBuf>, file: Option<PathBuf>, default: &str| flag.or(file).unwrap_or_else(|| default.into());
        let hostname = match flags.hostname.or(file.hostname) {
            Some(name) => name,
            None => own_hostname()?,
        };
        check_name("host", &hostname).map_err(|r| ConfigError::Value(format!("{} (see --hostname)", r.message)))?;
        let config = Self {
            data_dir: dir(flags.data_dir, file.data_dir, "/var/lib/meshd"),
            run_dir: dir(flags.run_dir, file.run_dir, "/run/meshd"),
            bpffs: dir(flags.bpffs, file.bpffs, "/sys/fs/bpf/meshd"),
            uplink: flags.uplink.or(file.uplink),
            hostname,
            control_port: flags.control_port.or(file.control_port).unwrap_or(mesh_api::CONTROL_PORT),
            resolv_conf: dir(flags.resolv_conf, file.resolv_conf, "/etc/resolv.conf"),
            flow_table_size: flags.flow_table_size.or(file.flow_table_size).unwrap_or(262_144),
            docker_plugin: match flags.docker_plugin.or(file.docker_plugin) {
                Some(path) if path.as_os_str().is_empty() => None,
                Some(path) => Some(DockerPlugin { path, asked: true }),
                None => Some(DockerPlugin {
                    path: DOCKER_PLUGIN.into(),
                    asked: false,
                }),
            },
            docker_socket: dir(flags.docker_socket, file.docker_socket, "/var/run/docker.sock"),
            podman_socket: dir(flags.podman_socket, file.podman_socket, "/run/podman/podman.sock"),
            cri_sockets: match flags.cri_socket.or(file.cri_socket) {
                Some(path) if path.as_os_str().is_empty() => Vec::new(),
                Some(path) => vec![path],
                None => CRI_SOCKETS.map(PathBuf::from).to_vec(),
            },
            metrics: match flags.metrics.or(file.metrics) {
                Some(MetricsAddr::Off) => None,
                Some(MetricsAddr::At(addr)) => Some(MetricsAt { addr, asked: true }),
                None => Some(MetricsAt {
                    addr: METRICS,
                    asked: false,
                }),
            },
            consul_http: flags.consul_http.or(file.consul_http),
            logging,
        };
        for (flag, path) in [
            ("data-dir", &config.data_dir),
            ("run-dir", &config.run_dir),
            ("bpffs", &config.bpffs),
            ("docker-socket", &config.docker_socket),
            ("podman-socket", &config.podman_socket),
        ]
        .into_iter()
        .chain(config.docker_plugin.iter().map(|p| ("docker-plugin", &p.path)))
        .chain(config.cri_sockets.iter().map(|p| ("cri-socket", p)))
        {
            if !path.is_absolute() {
                return Err(ConfigError::Value(format!("--{flag} {} is not an absolute path", path.display())));
            }
        }
        if config.control_port == 0 {
            return Err(ConfigError::Value("--control-port 0 is not a port: use 1 to 65535".into()));
        }
        if !(1024..=16_777_216).contains(&config.flow_table_size) {
            return Err(ConfigError::Value(format!(
                "--flow-table-size {} is not from 1024 to 16777216",
                config.flow_table_size
            )));
        }
        Ok(config)
    }

    /// The engines that are asked for containers by their names, the first first.
    pub fn engines(&self) -> [Engine; 2] {
        [Engine::at("docker", &self.docker_socket), Engine::at("podman", &self.podman_socket)]
    }

    /// The socket of the local API.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("meshd.sock")
    }

    /// The socket by which Docker's driver is asked, by the process that has [`DockerPlugin::path`].
    pub fn docker_front(&self) -> PathBuf {
        self.run_dir.join(crate::docker::front::SOCKET)
    }
}

fn read(path: &Path) -> Result<Flags, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read(path.into(), e))?;
    toml::from_str(&text).map_err(|e| ConfigError::Parse(path.into(), e.to_string()))
}

/// The host's name up to the first dot: node names are DNS labels.
fn own_hostname() -> Result<String, ConfigError> {
    let name =
        nix::unistd::gethostname().map_err(|e| ConfigError::Value(format!("the host's name is not known ({e}): give --hostname")))?;
    let name = name.to_string_lossy();
    Ok(name.split('.').next().unwrap_or_default().to_owned())
}

/// Pools of subnets when `meshctl init` names none: the ranges that Docker's users expect, the
/// second for hosts whose routes fill the first.
pub fn default_pools() -> Vec<IpNet> {
    let net = |a: [u8; 4], len| IpNet::new(IpAddr::V4(Ipv4Addr::from(a)), len).into_iter();
    net([10, 0, 0, 0], 8).chain(net([172, 16, 0, 0], 12)).collect()
}

/// Prefix length of a subnet from the pools when `meshctl init` names none: 4093 endpoints, where
/// Docker's /24 has room for 253 and runs out.
pub const DEFAULT_SUBNET_PREFIX: u8 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn load(args: &[&str]) -> Result<Config, ConfigError> {
        Config::load(Cli::try_parse_from([&["meshd"], args].concat()).unwrap().flags)
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("meshd.toml");
        std::fs::write(&file, "hostname = \"from-file\"\ndata-dir = \"/srv/meshd\"\n").unwrap();
        let c = load(&["--config", file.to_str().unwrap(), "--hostname", "from-flag"]).unwrap();
        assert_eq!((c.hostname.as_str(), c.data_dir.to_str().unwrap()), ("from-flag", "/srv/meshd"));
        std::fs::write(&file, "hostnam = \"typo\"\n").unwrap();
        let e = load(&["--config", file.to_str().unwrap()]).unwrap_err().to_string();
        assert!(e.contains("hostnam") && !e.contains('\n'), "{e}");
    }

    #[test]
    fn the_front_is_told_how_to_log() {
        let logging = Logging {
            filter: "meshd=debug,info".into(),
            format: LogFormat::Json,
        };
        let told = [vec!["meshd".into()], logging.flags().to_vec()].concat();
        let told = told.into_iter().chain(["docker-front", "/p", "/t"].map(String::from));
        let cli = Cli::try_parse_from(told).unwrap();
        assert!(matches!(cli.command, Some(Command::DockerFront { .. })));
        assert_eq!(Logging::of(&cli.flags, &Flags::default()), logging);
    }

    #[test]
    fn metrics_are_on_unless_told_otherwise() {
        let at = |args: &[&str]| load(&[&["--hostname", "h1"], args].concat()).unwrap().metrics;
        assert_eq!(
            at(&[]),
            Some(MetricsAt {
                addr: METRICS,
                asked: false
            })
        );
        assert_eq!(at(&["--metrics", "off"]), None);
        let addr = "[::1]:9000".parse().unwrap();
        assert_eq!(at(&["--metrics", "[::1]:9000"]), Some(MetricsAt { addr, asked: true }));
        for bad in ["", "9477", "127.0.0.1", "on"] {
            assert!(Cli::try_parse_from(["meshd", "--metrics", bad]).is_err(), "{bad:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("meshd.toml");
        std::fs::write(&file, "hostname = \"h1\"\nmetrics = \"off\"\n").unwrap();
        assert_eq!(at(&["--config", file.to_str().unwrap()]), None);
        assert!(at(&["--config", file.to_str().unwrap(), "--metrics", "127.0.0.1:1"]).is_some_and(|m| m.asked));
    }

    #[test]
    fn runtimes_are_looked_for_unless_one_is_named() {
        let sockets = |args: &[&str]| load(&[&["--hostname", "h1"], args].concat()).unwrap().cri_sockets;
        assert_eq!(sockets(&[]), CRI_SOCKETS.map(PathBuf::from));
        assert_eq!(sockets(&["--cri-socket", "/run/x.sock"]), [PathBuf::from("/run/x.sock")]);
        assert!(sockets(&["--cri-socket", ""]).is_empty());
        assert_eq!(load(&["--hostname", "h1", "--docker-plugin", ""]).unwrap().docker_plugin, None);
    }

    #[test]
    fn refuses_what_can_not_be() {
        for bad in [
            &["--hostname", "a.b"][..],
            &["--data-dir", "relative"],
            &["--control-port", "0"],
            &["--flow-table-size", "3"],
            &["--cri-socket", "crio.sock"],
        ] {
            assert!(load(bad).is_err(), "{bad:?}");
        }
    }
}
