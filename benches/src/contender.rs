//! Who builds beside whom: stock Nix, one node and several, each with a stock client.

use anyhow::Result;
use shoal_tests::machine::Remote;
use shoal_tests::{Cmd, Machine, Mesh, Nix, Node};

use crate::stock::{self, Stock};

/// Builds at once, of every contender.
pub const JOBS: usize = 2;

/// Where derivations are built, and the client that asks for it.
pub enum Contender {
    Local(Machine),
    Stock {
        client: Machine,
        _server: Machine,
        stock: Stock,
    },
    Shoal(Machine, Node),
    /// Several nodes, the first of which is talked to.
    Grid(Machine, Mesh),
}

impl Contender {
    pub fn local(nix: &Nix) -> Result<Contender> {
        Ok(Contender::Local(Machine::new(nix)))
    }

    pub fn stock(nix: &Nix, key_exchange: Option<&str>) -> Result<Contender> {
        let server = Machine::new(nix);
        let stock = Stock::start(nix, &server.root(), JOBS, key_exchange)?;
        Ok(Contender::Stock { client: Machine::new(nix), _server: server, stock })
    }

    pub fn shoal(nix: &Nix) -> Result<Contender> {
        let client = Machine::new(nix);
        let node = Node::start_with(&[&client], &["--max-jobs", &JOBS.to_string()]);
        Ok(Contender::Shoal(client, node))
    }

    /// So many nodes, each of which builds as much at once as one alone does.
    pub fn grid(nix: &Nix, nodes: usize) -> Result<Contender> {
        let client = Machine::new(nix);
        let mesh = Mesh::start_with(nodes, &[&client], &["--max-jobs", &JOBS.to_string()]);
        Ok(Contender::Grid(client, mesh))
    }

    /// A client, and the store it may name.
    pub fn client(&self) -> (Cmd, Option<String>) {
        match self {
            Contender::Local(machine) => (machine.local("nix-build"), None),
            Contender::Stock { client, stock, .. } => {
                (client.local("nix-build").env("NIX_SSHOPTS", stock.ssh_options()), Some(stock::STORE.into()))
            }
            Contender::Shoal(client, node) => (client.near("nix-build", node), Some(client.store(node, Remote::SshNg))),
            Contender::Grid(client, mesh) => {
                (client.near("nix-build", &mesh[0]), Some(client.store(&mesh[0], Remote::SshNg)))
            }
        }
    }

    /// Builds where the store is.
    pub fn direct(&self) -> Cmd {
        match self.client() {
            (cmd, None) => cmd.args(["--no-out-link", "--max-jobs", &JOBS.to_string()]),
            (cmd, Some(store)) => cmd.args(["--no-out-link", "--store", &store]),
        }
    }

    /// What the client does before anything is built.
    pub fn instantiate(&self) -> Cmd {
        match self {
            Contender::Local(machine) => machine.local("nix-instantiate"),
            Contender::Stock { client, stock, .. } => {
                let cmd = client.local("nix-instantiate").env("NIX_SSHOPTS", stock.ssh_options());
                cmd.without_env("NIX_CLIENT_ROOT").env("NIX_REMOTE", stock::STORE)
            }
            Contender::Shoal(client, node) => client.remote("nix-instantiate", node, Remote::SshNg),
            Contender::Grid(client, mesh) => client.remote("nix-instantiate", &mesh[0], Remote::SshNg),
        }
    }

    /// Keeps its own store and has others build for it.
    pub fn hook(&self) -> Cmd {
        let (cmd, store) = self.client();
        let builder = store.map(|store| format!("{store} x86_64-linux - {JOBS} 1")).unwrap_or_default();
        cmd.args(["--no-out-link", "--max-jobs", "0", "--builders", &builder])
    }
}
