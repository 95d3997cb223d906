//! What a node keeps of its membership, in a directory of its own.
//!
//! | file | what |
//! |---|---|
//! | `certificate` | the mesh key's word that the node is a member; without it the node is in no mesh |
//! | `mesh-key` | the key of the mesh, in Nix's form: a secret, only where nodes are let in |
//! | `signing-keys` | secret keys that sign what the mesh builds, in Nix's form, one a line |
//! | `incarnation` | the last incarnation that the node published |
//! | `spent-grants` | which single-use grants were used here, and by whom |
//! | `facts` | what membership knew last: a cache |
//!
//! Invariants:
//! - files are replaced whole; secrets are readable by their owner only;
//! - the certificate is written last and removed first, so that a node is in a mesh entirely or not;
//! - an incarnation is on disk before it is published, and a single-use grant before the certificate that is given for
//!   it goes out.

mod admission;
mod facts;
mod spent;

pub use admission::{AdmitError, Invitation};

use crate::files::{self, PUBLIC, SECRET};
use shoal_grid::membership::notary::Keys;
use shoal_wire::mesh::certificate::{Certificate, Roles, Term};
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use shoal_wire::mesh::join::{SIGNING_KEYS_MAX, Welcome};
use shoal_wire::mesh::{MeshId, NodeKey};
use shoal_wire::nix::signature::{KeyError, SecretKey};
use spent::Spent;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use thiserror::Error;

/// How long a certificate lasts where nothing else was asked for: machines that are off for months come back, and it is
/// renewed long before.
pub const MEMBERSHIP_S: u64 = 365 * 24 * 3_600;
/// Longest term of a certificate. Revocations are kept for as long.
pub const MEMBERSHIP_S_MAX: u64 = 2 * MEMBERSHIP_S;
/// What the node that makes a mesh may do in it, and one that has its secret.
const ALL_ROLES: Roles = Roles(Roles::STORE.0 | Roles::BUILD.0 | Roles::ADMIT.0);
/// Name of mesh keys in their files. Nodes know the key by its public half.
const MESH_KEY_NAME: &str = "shoal-mesh";

const CERTIFICATE: &str = "certificate";
const MESH_KEY: &str = "mesh-key";
const SIGNING_KEYS: &str = "signing-keys";
const INCARNATION: &str = "incarnation";
const SPENT_GRANTS: &str = "spent-grants";
const FACTS: &str = "facts";
/// Keys and numbers are short lines.
const TEXT_LEN_MAX: usize = 4096;

/// Why there is no identity, or why it was not kept.
#[derive(Debug, Error)]
pub enum IdentityError {
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
    /// The node key was replaced, or the directory is another node's.
    #[error("{} is of another node key: join again, or bring the old key back", .0.display())]
    OtherNode(PathBuf),
    #[error("the node is in another mesh already: leave it first")]
    OtherMesh,
    #[error("the node is in a mesh already: leave it first")]
    Member,
    #[error("the mesh key is not here: ask a node that lets nodes in")]
    NotAdmitting,
    #[error("the certificate does not hold now: look at the clocks of this node and of the one that gave it")]
    NotNow,
    #[error("a node cannot throw itself out: leave instead")]
    Itself,
    #[error("a term of {0} s is none, or longer than {MEMBERSHIP_S_MAX} s")]
    Term(u64),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A member's keys and certificate, with the directory that keeps them.
#[derive(Debug)]
pub struct Identity {
    dir: PathBuf,
    node_key: SecretKey,
    mesh_key: Option<SecretKey>,
    signing_keys: Vec<SecretKey>,
    mesh: MeshId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    certificate: Certificate,
    incarnation: u64,
    spent: Spent,
}

impl Identity {
    /// What `dir` keeps; `None` where the node is in no mesh.
    pub fn open(dir: &Path, node_key: SecretKey) -> Result<Option<Self>, IdentityError> {
        let Some(certificate) = read_certificate(dir, &node_key)? else { return Ok(None) };
        let mesh_key = read_keys(dir, MESH_KEY)?.pop();
        if mesh_key.as_ref().is_some_and(|key| *key.public().bytes() != certificate.mesh) {
            return Err(damaged(&dir.join(MESH_KEY), "it is not the key of this mesh"));
        }
        Self::assemble(dir, node_key, mesh_key, certificate).map(Some)
    }

    /// Makes a mesh of one. `signing_keys` will sign what it builds.
    pub fn create(
        dir: &Path,
        node_key: SecretKey,
        signing_keys: &[SecretKey],
        wall_s: u64,
    ) -> Result<Self, IdentityError> {
        if read_certificate(dir, &node_key)?.is_some() {
            return Err(IdentityError::Member);
        }
        let mesh_key = SecretKey::generate(MESH_KEY_NAME)?;
        let certificate = certify(&mesh_key, *node_key.public().bytes(), ALL_ROLES, MEMBERSHIP_S, wall_s);
        let signing_keys: Vec<String> = signing_keys.iter().map(SecretKey::to_secret_text).collect();
        enter(dir, Some(&mesh_key), &signing_keys, &certificate)?;
        Self::assemble(dir, node_key, Some(mesh_key), certificate)
    }

    /// A member of the mesh whose secret the nodes share from elsewhere: it certifies itself. The secret is not kept.
    pub fn with_secret(
        dir: &Path,
        node_key: SecretKey,
        mesh_key: SecretKey,
        wall_s: u64,
    ) -> Result<Self, IdentityError> {
        let mesh = *mesh_key.public().bytes();
        let certificate = match read_certificate(dir, &node_key)? {
            Some(certificate) if certificate.mesh != mesh => return Err(IdentityError::OtherMesh),
            Some(certificate) if !is_old(&certificate.term, wall_s) => certificate,
            _ => {
                let certificate = certify(&mesh_key, *node_key.public().bytes(), ALL_ROLES, MEMBERSHIP_S, wall_s);
                make_directory(dir)?;
                write_certificate(dir, &certificate)?;
                certificate
            }
        };
        Self::assemble(dir, node_key, Some(mesh_key), certificate)
    }

    /// Becomes a member by what a node with the mesh key answered. One that is a member of the same mesh gets the new
    /// certificate.
    pub fn accept(dir: &Path, node_key: SecretKey, welcome: &Welcome, wall_s: u64) -> Result<Self, IdentityError> {
        let certificate = &welcome.certificate;
        check_certificate(certificate, &node_key, wall_s)?;
        if read_certificate(dir, &node_key)?.is_some_and(|old| old.mesh != certificate.mesh) {
            return Err(IdentityError::OtherMesh);
        }
        let mesh_key = welcome.mesh_key.map(|seed| SecretKey::from_seed(MESH_KEY_NAME, seed)).transpose()?;
        if mesh_key.as_ref().is_some_and(|key| *key.public().bytes() != certificate.mesh) {
            return Err(FormatError::Forged(Certificate::WHAT).into());
        }
        for key in &welcome.signing_keys {
            key.parse::<SecretKey>()?;
        }
        enter(dir, mesh_key.as_ref(), &welcome.signing_keys, certificate)?;
        Self::assemble(dir, node_key, mesh_key, certificate.clone())
    }

    /// Forgets the mesh.
    pub fn leave(dir: &Path) -> Result<(), IdentityError> {
        for name in [CERTIFICATE, MESH_KEY, SIGNING_KEYS, FACTS, SPENT_GRANTS, INCARNATION] {
            remove(dir, name)?;
        }
        Ok(())
    }

    fn assemble(
        dir: &Path,
        node_key: SecretKey,
        mesh_key: Option<SecretKey>,
        certificate: Certificate,
    ) -> Result<Self, IdentityError> {
        let signing_keys = read_keys(dir, SIGNING_KEYS)?;
        let state =
            State { incarnation: read_incarnation(dir)?, spent: Spent::read(&dir.join(SPENT_GRANTS))?, certificate };
        let mesh = state.certificate.mesh;
        Ok(Self { dir: dir.to_owned(), node_key, mesh_key, signing_keys, mesh, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that is guarded is left half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn node(&self) -> NodeKey {
        *self.node_key.public().bytes()
    }

    pub fn node_key(&self) -> &SecretKey {
        &self.node_key
    }

    pub fn mesh(&self) -> MeshId {
        self.mesh
    }

    pub fn certificate(&self) -> Certificate {
        self.state().certificate.clone()
    }

    /// Whether this node holds the mesh key, and so may let others in.
    pub fn admits(&self) -> bool {
        self.mesh_key.is_some()
    }

    /// Keys that sign what the mesh builds; the first is the one in use.
    pub fn signing_keys(&self) -> &[SecretKey] {
        &self.signing_keys
    }

    /// For [`shoal_grid::membership::Membership`].
    pub fn notary(&self) -> Result<Keys, IdentityError> {
        let key = SecretKey::from_seed(self.node_key.name(), *self.node_key.seed())?;
        Ok(Keys { key, certificate: self.certificate() })
    }

    /// The incarnation to start with: above all that were kept, and kept itself.
    pub fn begin_incarnation(&self) -> Result<u64, IdentityError> {
        let mut state = self.state();
        // The last number cannot be followed by another, and records do not take it.
        let next = state.incarnation.saturating_add(1).min(u64::MAX - 1);
        self.write_incarnation(&mut state, next)?;
        Ok(next)
    }

    /// Keeps an incarnation that the node is about to publish. Lower ones than the last are not kept.
    pub fn keep_incarnation(&self, incarnation: u64) -> Result<(), IdentityError> {
        let mut state = self.state();
        match incarnation > state.incarnation {
            true => self.write_incarnation(&mut state, incarnation),
            false => Ok(()),
        }
    }

    fn write_incarnation(&self, state: &mut State, incarnation: u64) -> Result<(), IdentityError> {
        write(&self.dir, INCARNATION, PUBLIC, format!("{incarnation}\n").as_bytes())?;
        state.incarnation = incarnation;
        Ok(())
    }

    /// Whether more than half of the certificate's time is over: then it is worth another one.
    pub fn is_old(&self, wall_s: u64) -> bool {
        is_old(&self.state().certificate.term, wall_s)
    }

    /// Replaces the certificate where this node holds the mesh key and it [is old](Self::is_old). Whether it did.
    pub fn renew(&self, wall_s: u64) -> Result<bool, IdentityError> {
        let Some(mesh_key) = &self.mesh_key else { return Ok(false) };
        let term = self.state().certificate.term;
        if !is_old(&term, wall_s) {
            return Ok(false);
        }
        self.keep_certificate(certify(mesh_key, self.node(), term.roles, MEMBERSHIP_S, wall_s))?;
        Ok(true)
    }

    /// Takes a certificate that another node renewed.
    pub fn renewed(&self, certificate: Certificate, wall_s: u64) -> Result<(), IdentityError> {
        check_certificate(&certificate, &self.node_key, wall_s)?;
        match certificate.mesh == self.mesh {
            true => self.keep_certificate(certificate),
            false => Err(IdentityError::OtherMesh),
        }
    }

    fn keep_certificate(&self, certificate: Certificate) -> Result<(), IdentityError> {
        let mut state = self.state();
        write_certificate(&self.dir, &certificate)?;
        state.certificate = certificate;
        Ok(())
    }
}

fn is_old(term: &Term, wall_s: u64) -> bool {
    let length_s = term.expires_s.saturating_sub(term.not_before_s);
    wall_s.saturating_sub(term.not_before_s) > length_s / 2
}

/// A certificate from now on.
fn certify(mesh_key: &SecretKey, node: NodeKey, roles: Roles, membership_s: u64, wall_s: u64) -> Certificate {
    let membership_s = membership_s.clamp(1, MEMBERSHIP_S_MAX);
    let term = Term { roles, not_before_s: wall_s, expires_s: wall_s.saturating_add(membership_s) };
    Certificate::issue(mesh_key, node, term)
}

fn check_certificate(certificate: &Certificate, node_key: &SecretKey, wall_s: u64) -> Result<(), IdentityError> {
    if certificate.node != *node_key.public().bytes() || !certificate.is_signed() {
        return Err(FormatError::Forged(Certificate::WHAT).into());
    }
    match certificate.term.holds(wall_s) {
        true => Ok(()),
        false => Err(IdentityError::NotNow),
    }
}

/// Writes all that makes a node a member, the certificate last.
fn enter(
    dir: &Path,
    mesh_key: Option<&SecretKey>,
    signing_keys: &[String],
    certificate: &Certificate,
) -> Result<(), IdentityError> {
    make_directory(dir)?;
    match mesh_key {
        Some(key) => write(dir, MESH_KEY, SECRET, format!("{}\n", key.to_secret_text()).as_bytes())?,
        // Of an earlier certificate, which let nodes in.
        None => remove(dir, MESH_KEY)?,
    }
    let signing_keys: String = signing_keys.iter().take(SIGNING_KEYS_MAX).map(|key| format!("{key}\n")).collect();
    write(dir, SIGNING_KEYS, SECRET, signing_keys.as_bytes())?;
    write_certificate(dir, certificate)
}

fn make_directory(dir: &Path) -> Result<(), IdentityError> {
    std::fs::create_dir_all(dir).map_err(|error| IdentityError::File { path: dir.to_owned(), error })
}

fn write(dir: &Path, name: &str, mode: u32, bytes: &[u8]) -> Result<(), IdentityError> {
    let path = dir.join(name);
    files::replace(&path, mode, bytes).map_err(|error| IdentityError::File { path, error })
}

fn remove(dir: &Path, name: &str) -> Result<(), IdentityError> {
    let path = dir.join(name);
    files::remove(&path).map_err(|error| IdentityError::File { path, error })
}

fn read(dir: &Path, name: &str, len_max: usize) -> Result<Option<Vec<u8>>, IdentityError> {
    let path = dir.join(name);
    files::read(&path, len_max).map_err(|error| IdentityError::File { path, error })
}

fn damaged(path: &Path, why: impl ToString) -> IdentityError {
    IdentityError::Damaged { path: path.to_owned(), why: why.to_string() }
}

fn write_certificate(dir: &Path, certificate: &Certificate) -> Result<(), IdentityError> {
    write(dir, CERTIFICATE, PUBLIC, &encode(certificate))
}

fn read_certificate(dir: &Path, node_key: &SecretKey) -> Result<Option<Certificate>, IdentityError> {
    let Some(bytes) = read(dir, CERTIFICATE, Certificate::LEN_MAX)? else { return Ok(None) };
    let path = dir.join(CERTIFICATE);
    let certificate: Certificate = decode(&bytes).map_err(|error| damaged(&path, error))?;
    if !certificate.is_signed() {
        return Err(damaged(&path, FormatError::Forged(Certificate::WHAT)));
    }
    match certificate.node == *node_key.public().bytes() {
        true => Ok(Some(certificate)),
        false => Err(IdentityError::OtherNode(path)),
    }
}

/// Keys of a file with one a line.
fn read_keys(dir: &Path, name: &str) -> Result<Vec<SecretKey>, IdentityError> {
    let path = dir.join(name);
    let bytes = read(dir, name, TEXT_LEN_MAX)?.unwrap_or_default();
    let text = String::from_utf8(bytes).map_err(|error| damaged(&path, error))?;
    text.lines().map(|line| line.parse().map_err(|error| damaged(&path, error))).collect()
}

/// One that cannot be read counts as none: other members tell the node what it was.
fn read_incarnation(dir: &Path) -> Result<u64, IdentityError> {
    let Some(bytes) = read(dir, INCARNATION, TEXT_LEN_MAX)? else { return Ok(0) };
    let number = std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
    Ok(number.unwrap_or_else(|| {
        tracing::warn!("{} is damaged and counts as absent", dir.join(INCARNATION).display());
        0
    }))
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
