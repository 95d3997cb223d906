//! Builds for the node's operator, who opens its control socket instead of a door.

use std::sync::Arc;

use shoal_wire::nix::derived_path::DerivedPath;
use shoal_wire::nix::worker::BuildResult;
use shoal_wire::nix::worker::ops::BuildMode;

use super::builds::Audience;
use super::fault::Fault;
use super::{Client, Services};
use crate::build::request::BuildOptions;
use crate::door::{Grant, Hangup, Peer, Role};

impl Client {
    /// Believed in all it says. What it builds is given up when `hangup` fires.
    pub fn of_operator(services: Arc<Services>, hangup: Hangup) -> Client {
        let grant = Grant { role: Role::Admin, tenant: None, who: "the operator".into() };
        let temp_roots = services.store.temp_roots();
        let peer = Peer { grant, from: "control socket".into() };
        Client { services, peer, temp_roots, hangup, options: BuildOptions::default() }
    }

    /// Makes all of `wanted` valid; one result for each, in order. Derivations may be at other nodes.
    pub fn build_for_operator(
        &self,
        wanted: &[DerivedPath],
        mode: BuildMode,
        options: BuildOptions,
        audience: &mut impl Audience,
    ) -> Result<Vec<BuildResult>, Fault> {
        self.build(wanted, mode, options, audience)
    }
}
