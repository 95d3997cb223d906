//! Sessions: what one client asks, answered.
//!
//! A session is a blocking thread between a door's pipe, the store and the builds. It speaks the worker protocol
//! ([`worker`]) or the serve protocol ([`serve`]); the operations themselves know neither. What comes in is judged in
//! [`admission`], whoever sends it: a client that is not trusted can prove a path, never claim one.

use std::sync::Arc;

use shoal_store::{Store, TempRoots};
use shoal_wire::nix::signature::{SecretKey, TrustedKeys};
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use crate::build::request::BuildOptions;
use crate::build::service::BuildService;
use crate::door::{Call, Hangup, Host, Peer, Program, Role};
use crate::upstream::Upstreams;
use admission::Admission;
use fault::Fault;

pub mod activities;
pub mod admission;
pub mod builds;
pub mod ca_check;
pub mod deposit;
pub mod fault;
pub mod gc;
pub mod git_hash;
pub mod mesh;
pub mod nar;
pub mod operator;
pub mod queries;
pub mod serve;
pub mod settings;
pub mod spool;
pub mod substitution;
pub mod uploads;
pub mod worker;

/// What clients are told where they ask for a version of Nix.
pub const VERSION: &str = concat!("shoal ", env!("CARGO_PKG_VERSION"));

/// What all sessions of a node share.
pub struct Services {
    pub store: Store,
    pub dir: StoreDir,
    pub builds: Arc<BuildService>,
    pub admission: Admission,
    pub upstreams: Upstreams,
}

/// Serves the sessions of all doors.
pub struct SessionHost(Arc<Services>);

impl SessionHost {
    /// Paths need a signature by one of `trusted_keys`, unless `require_sigs` is off.
    pub fn new(store: Store, builds: Arc<BuildService>, trusted_keys: TrustedKeys, require_sigs: bool) -> Self {
        let dir = builds.store_dir().clone();
        let admission = Admission::new(builds.derivations(), dir.clone(), trusted_keys, require_sigs);
        SessionHost(Arc::new(Services { store, dir, builds, admission, upstreams: Upstreams::default() }))
    }

    /// What the sessions share, for what serves clients in another way.
    pub fn services(&self) -> Arc<Services> {
        self.0.clone()
    }

    /// Also signs, with these keys, what a trusted client uploads without a trusted signature.
    pub fn signing_with(mut self, keys: Vec<Arc<SecretKey>>) -> Self {
        if let Some(services) = Arc::get_mut(&mut self.0) {
            services.admission.sign_with(keys);
        }
        self
    }

    /// Also asks these caches for what the node does not have.
    pub fn behind(mut self, upstreams: Upstreams) -> Self {
        if let Some(services) = Arc::get_mut(&mut self.0) {
            services.upstreams = upstreams;
        }
        self
    }
}

impl Host for SessionHost {
    fn serve(&self, call: Call) -> u32 {
        let Call { program, peer, input, output, hangup } = call;
        let temp_roots = self.0.store.temp_roots();
        let client = Client { services: self.0.clone(), peer, temp_roots, hangup, options: BuildOptions::default() };
        match program {
            Program::Daemon => worker::serve(client, input, output),
            Program::Serve { write } => serve::serve(client, write, input, output),
        }
    }

    fn refusal(&self, program: Program, text: &str) -> Vec<u8> {
        match program {
            Program::Daemon => worker::refusal(&self.0.dir, text),
            Program::Serve { .. } => Vec::new(),
        }
    }
}

/// Who a session works for, and what it holds for it.
pub struct Client {
    services: Arc<Services>,
    peer: Peer,
    /// What the client added, built or asked to keep; until it goes.
    temp_roots: TempRoots,
    hangup: Hangup,
    options: BuildOptions,
}

impl Client {
    fn store(&self) -> &Store {
        &self.services.store
    }

    fn dir(&self) -> &StoreDir {
        &self.services.dir
    }

    /// Whether the client is believed whatever it says.
    fn is_trusted(&self) -> bool {
        self.may(Role::Admin)
    }

    fn may(&self, role: Role) -> bool {
        self.peer.grant.role >= role
    }

    /// An error unless the client's role reaches `role`. `what` continues "you are not privileged to".
    fn require(&self, role: Role, what: &str) -> Result<(), Fault> {
        if self.may(role) {
            return Ok(());
        }
        let own = self.peer.grant.role;
        Err(Fault::refused(format!(
            "you are not privileged to {what}: it takes the role '{role}', your key has '{own}'"
        )))
    }

    fn not_valid(&self, path: &StorePath) -> Fault {
        Fault::refused(format!("path '{}' is not valid", self.dir().print(path)))
    }
}
