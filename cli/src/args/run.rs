//! run: a process in a network, without a container runtime.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::attach::Attach;
use crate::values;

/// Run a command in a network of its own, without a container runtime
#[derive(Args, Debug)]
#[command(after_long_help = "\
The command has its own network namespace with the endpoint's interface, its own host name, and its
own resolv.conf, hosts and nsswitch.conf; files, users and processes are the host's. It starts when
its endpoint works. It runs in a cgroup of its own, whose processes end with it. Signals are passed
on, and its exit code is meshctl's: 128+N after signal N, 127 when there is no such command, 126
when it cannot be run. The endpoint goes when the command ends, also when meshctl is killed.

In a second network it has an interface more, eth1, with the same name, aliases and labels. Names of
all its networks resolve; the default route is the first's that is not internal.

Examples:
  meshctl run --network shop --service web -- nginx -g 'daemon off;'
  meshctl run --network shop --name db --ip 172.30.0.5 --user postgres -- postgres -D /srv/db
  meshctl run --network shop --network db -- api
  meshctl run --network shop -- curl http://web/
  meshctl run --network shop -- bash                    a shell, to look around")]
pub struct Run {
    /// Name or id of the network; may be given several times, the first for eth0 and all that is said of the endpoint
    #[arg(long = "network", value_name = "NETWORK", required = true, value_parser = values::reference)]
    pub networks: Vec<String>,
    #[command(flatten)]
    pub attach: Attach,
    /// Name of the endpoint [default: the host name, or else made from the command's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Host name that the command sees [default: the endpoint's name]
    #[arg(long, value_name = "NAME", value_parser = values::hostname)]
    pub hostname: Option<String>,
    /// Interface in the first network
    #[arg(long, value_name = "NAME", default_value = "eth0", value_parser = values::ifname)]
    pub ifname: String,
    /// User, and group, to run as: names or numbers [default: meshctl's]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = values::reference)]
    pub user: Option<String>,
    /// Directory to run in [default: the present one]
    #[arg(long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// Environment variable, beside meshctl's own; may be given several times
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = values::variable)]
    pub env: Vec<(String, String)>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}
