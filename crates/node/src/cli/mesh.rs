//! `shoal mesh`, `shoal peers` and `shoal drain`: who is one store together.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use shoal_mesh::identity::{Identity, MEMBERSHIP_S};
use shoal_wire::nix::base64::encode_hex;

use super::{Exit, Failure, Global, Outcome, ReadArgs, output};
use crate::config::units::{parse_duration, size_text};
use crate::config::{Config, ConfigFlags};
use crate::control::{Request, client};
use crate::mesh::place::{self, wall_s};
use crate::{keys, serve};

const MIB: u64 = 1 << 20;

#[derive(Subcommand)]
pub enum Mesh {
    /// Make a mesh of this node, or a secret that nodes share instead of tickets
    Create(Create),
    /// Print a ticket that lets a node into the mesh of this one
    Invite(Invite),
    /// Make this node a member of the mesh that a ticket is for
    Join(Join),
    /// Hand over what only this node holds, and be in no mesh with others any more
    Leave,
    /// Throw a node out of the mesh for good
    Revoke(Revoke),
}

#[derive(Args)]
pub struct Create {
    /// Write a new mesh secret to this file, for nodes with mesh-secret-file, and do nothing else
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Invite {
    /// Good for any number of nodes until it ends, instead of for one
    #[arg(long)]
    reusable: bool,
    /// What such a node may do: store (keep copies), build, admit (let others in), operate (ask nodes to drain)
    #[arg(long, value_name = "ROLE", default_values = ["store", "build"])]
    role: Vec<String>,
    /// How long the ticket is good
    #[arg(long, value_name = "TIME", default_value = "1d", value_parser = parse_duration)]
    ttl: Duration,
    /// How long a node that came by it is a member, unless that is renewed [default: a year]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    membership: Option<Duration>,
}

#[derive(Args)]
pub struct Join {
    /// The ticket, or a file that holds it
    ticket: String,
}

#[derive(Args)]
pub struct Revoke {
    /// Its name, or the beginning of its key
    node: String,
}

#[derive(Args)]
pub struct Peers {
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Drain;

impl Mesh {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        match self {
            Mesh::Create(create) => create.run(&config),
            Mesh::Invite(invite) => invite.run(&config),
            Mesh::Join(join) => join.run(&config),
            Mesh::Leave => leave(&config),
            Mesh::Revoke(revoke) => {
                let request = Request::MeshRevoke { node: revoke.node.clone() };
                let revoked = client::ask_one(&config.data_dir, &request)?;
                Ok(output::line(&format!("revoked {}", text(&revoked, "revoked")))?)
            }
        }
    }
}

fn text<'a>(item: &'a Value, name: &str) -> &'a str {
    item[name].as_str().unwrap_or_default()
}

impl Create {
    fn run(&self, config: &Config) -> Outcome {
        if let Some(file) = &self.secret_file {
            keys::make(file, "shoal-mesh")?;
            return Ok(output::line(&format!(
                "wrote {}; nodes that have it as mesh-secret-file are one mesh, and whoever has it can join",
                file.display()
            ))?);
        }
        let _lock = serve::lock::lock(&config.data_dir)
            .context("a node that runs has a mesh already: 'shoal mesh invite' prints a ticket for it")?;
        let dir = crate::mesh::directory(&config.data_dir);
        let signing_keys = keys::signing_keys(config)?;
        let identity = Identity::create(&dir, keys::node_key(&config.data_dir)?, &signing_keys, wall_s())?;
        Ok(output::line(&format!("made the mesh {}", encode_hex(&identity.mesh())))?)
    }
}

impl Invite {
    fn run(&self, config: &Config) -> Outcome {
        let request = Request::MeshInvite {
            reusable: self.reusable,
            roles: self.role.clone(),
            ttl_seconds: self.ttl.as_secs(),
            membership_seconds: self.membership.map_or(MEMBERSHIP_S, |time| time.as_secs()),
        };
        let answer = client::ask_one(&config.data_dir, &request)?;
        Ok(output::line(text(&answer, "ticket"))?)
    }
}

impl Join {
    fn run(&self, config: &Config) -> Outcome {
        // A file is this command's, not the node's.
        let ticket = place::read_ticket(&self.ticket)?.to_string();
        let joined = match client::ask_one(&config.data_dir, &Request::MeshJoin { ticket: ticket.clone() }) {
            Ok(answer) => return Ok(output::line(&said(text(&answer, "mesh_id"), "; the node starts again in it"))?),
            Err(error) if Exit::of(&error) == Exit::Unreachable => join_stopped(config, &ticket)?,
            Err(error) => return Err(error),
        };
        Ok(output::line(&said(&joined, "; 'shoal serve' takes part in it"))?)
    }
}

fn said(mesh: &str, next: &str) -> String {
    format!("this node is a member of the mesh {mesh} now{next}")
}

/// While no node runs on the data directory.
fn join_stopped(config: &Config, ticket: &str) -> Result<String> {
    let _lock = serve::lock::lock(&config.data_dir)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let place = runtime.block_on(place::by_ticket(config, ticket))?;
    Ok(place.identity.map(|identity| encode_hex(&identity.mesh())).unwrap_or_default())
}

fn leave(config: &Config) -> Outcome {
    let mut left = false;
    client::ask(&config.data_dir, &Request::MeshLeave, |item| {
        left |= item["left"] == json!(true);
        show_progress(&item)
    })?;
    if !left {
        bail!("the node did not say that it left");
    }
    Ok(output::line("left the mesh; the node starts again in one of its own")?)
}

fn show_progress(item: &Value) -> Result<()> {
    match (item["handed_over"].as_u64(), item["of"].as_u64()) {
        (Some(done), Some(all)) => Ok(output::line(&format!("{done} of {all} paths are on other nodes"))?),
        _ => Ok(()),
    }
}

impl Drain {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        client::ask(&config.data_dir, &Request::Drain, |item| show_progress(&item))?;
        Ok(output::line("the node takes no new builds and no copies; it can be stopped")?)
    }
}

impl Peers {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let mut peers = Vec::new();
        client::ask(&config.data_dir, &Request::Peers, |item| {
            peers.push(item);
            Ok(())
        })?;
        if peers.is_empty() {
            return Err(Failure::new(Exit::TryAgain, "the node does not know itself yet; try again").into());
        }
        if self.read.json {
            return Ok(output::json(&Value::Array(peers))?);
        }
        let head = ["NODE", "STATE", "ADDRESS", "RTT", "BUILDS", "FREE", "KEY"].map(String::from).to_vec();
        let rows: Vec<Vec<String>> = std::iter::once(head).chain(peers.iter().map(row)).collect();
        Ok(output::table(&rows)?)
    }
}

fn row(peer: &Value) -> Vec<String> {
    let number = |name: &str| peer[name].as_u64().unwrap_or(0);
    let is_self = peer["self"] == json!(true);
    let state = match (is_self, text(peer, "presence")) {
        (true, "active") => "this node".to_string(),
        (true, presence) => format!("this node, {presence}"),
        // Who left says the same twice.
        (false, "active" | "left") => text(peer, "state").to_string(),
        (false, presence) => format!("{}, {presence}", text(peer, "state")),
    };
    let link = &peer["link"];
    let known = peer["addresses"].as_array().and_then(|all| all.first()).and_then(Value::as_str);
    let address = link["address"].as_str().or(known).unwrap_or("-").to_string();
    let rtt = link["rtt_ms"].as_f64().map_or("-".to_string(), |ms| format!("{ms:.1} ms"));
    let builds = format!("{}/{} +{}", number("running"), number("slots"), number("queued"));
    let free = size_text(number("free_store_mib") * MIB);
    let key = text(peer, "node_id").get(..10).unwrap_or_default().to_string();
    vec![text(peer, "name").to_string(), state, address, rtt, builds, free, key]
}
