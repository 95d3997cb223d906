//! What it is told at its start.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Sizes the StatefulSets of a shoal mesh by what its nodes gossip of their demand.
#[derive(Parser, Clone, Debug)]
#[command(name = "shoal-k8s", version)]
pub struct Options {
    /// Namespace of the StatefulSets and of the lease [default: that of the service account]
    #[arg(long, env = "SHOAL_K8S_NAMESPACE")]
    pub namespace: Option<String>,
    /// StatefulSets that are sized, by their labels
    #[arg(long, env = "SHOAL_K8S_SELECTOR", default_value = "shoal.build/pool")]
    pub selector: String,
    /// Ticket of the mesh, or a file with one; 'shoal mesh invite --reusable --role operate' makes it. Needed at the first start only
    #[arg(long, env = "SHOAL_K8S_JOIN", hide_env_values = true)]
    pub join: Option<String>,
    /// Keys and what is known of the mesh; may be lost where the ticket is reusable
    #[arg(long, env = "SHOAL_K8S_DATA_DIR", default_value = "/var/lib/shoal-k8s")]
    pub data_dir: PathBuf,
    /// Where other nodes reach it (UDP)
    #[arg(long, env = "SHOAL_K8S_MESH", default_value = "[::]:0")]
    pub mesh: SocketAddr,
    /// Where /healthz and /metrics are
    #[arg(long, env = "SHOAL_K8S_LISTEN", default_value = "[::]:9090")]
    pub listen: SocketAddr,
    /// Its name in the lease and in the mesh [default: the host's name]
    #[arg(long, env = "SHOAL_K8S_IDENTITY")]
    pub identity: Option<String>,
    /// Name of the lease: of several that share it one decides
    #[arg(long, env = "SHOAL_K8S_LEASE", default_value = "shoal-k8s")]
    pub lease: String,
    /// Decide, log and measure, but change nothing: neither sizes nor what nodes do
    #[arg(long, env = "SHOAL_K8S_DRY_RUN")]
    pub dry_run: bool,
}

impl Options {
    pub fn identity(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
        self.identity
            .clone()
            .unwrap_or_else(|| host().ok().filter(|name| !name.is_empty()).unwrap_or("shoal-k8s".into()))
    }
}
