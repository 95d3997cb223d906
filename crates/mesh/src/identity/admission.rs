//! Whom the holder of a mesh key lets in, and throws out.

use super::spent::Spending;
use super::{Identity, IdentityError, MEMBERSHIP_S_MAX, certify};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::{CLOCK_SKEW_MAX_S, Certificate, Roles};
use shoal_wire::mesh::format::FormatError;
use shoal_wire::mesh::join::{Claim, Refusal, Welcome};
use shoal_wire::mesh::revocation::Revocation;
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::mesh::ticket::{CONTACTS_MAX, Contact, Grant, Ticket};
use shoal_wire::nix::signature::SecretKey;
use thiserror::Error;

/// What a ticket is to be worth.
#[derive(Debug, Clone)]
pub struct Invitation {
    /// Good for any number of nodes, at any node with the mesh key; else for one, at this one.
    pub reusable: bool,
    pub roles: Roles,
    /// How long the ticket is good.
    pub ttl_s: u64,
    /// How long the certificates last that are given for it.
    pub membership_s: u64,
    /// Where the mesh is. A single-use ticket needs this node among them.
    pub contacts: Vec<Contact>,
}

/// Why a node is not let in.
#[derive(Debug, Error)]
pub enum AdmitError {
    #[error("{reason}")]
    Refused { refusal: Refusal, reason: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

fn refuse<T>(refusal: Refusal, reason: impl ToString) -> Result<T, AdmitError> {
    Err(AdmitError::Refused { refusal, reason: reason.to_string() })
}

impl Identity {
    fn mesh_key(&self) -> Result<&SecretKey, IdentityError> {
        self.mesh_key.as_ref().ok_or(IdentityError::NotAdmitting)
    }

    pub fn invite(&self, invitation: Invitation, wall_s: u64) -> Result<Ticket, IdentityError> {
        let mesh_key = self.mesh_key()?;
        let membership_s = invitation.membership_s;
        if !(1..=MEMBERSHIP_S_MAX).contains(&membership_s) {
            return Err(IdentityError::Term(membership_s));
        }
        let mut id = [0; 16];
        // A fresh key is as random as can be had, and needs no other source of randomness.
        id.copy_from_slice(&SecretKey::generate("grant")?.seed()[..16]);
        let grant = Grant {
            mesh: self.mesh,
            id,
            once_at: (!invitation.reusable).then(|| self.node()),
            roles: invitation.roles,
            expires_s: wall_s.saturating_add(invitation.ttl_s),
            membership_s,
        };
        let grant = Sealed::seal(grant, mesh_key)?.bytes().to_vec();
        let contacts = invitation.contacts.into_iter().take(CONTACTS_MAX).collect();
        Ok(Ticket { grant, contacts })
    }

    /// The revocation of a member, for [`shoal_grid::membership::Membership::revoke`].
    pub fn revoke(&self, node: NodeKey, wall_s: u64) -> Result<Sealed<Revocation>, IdentityError> {
        if node == self.node() {
            return Err(IdentityError::Itself);
        }
        let until_s = wall_s.saturating_add(MEMBERSHIP_S_MAX);
        let revocation = Revocation { mesh: self.mesh, node, until_s };
        Ok(Sealed::seal(revocation, self.mesh_key()?)?)
    }

    /// A certificate for `node`, which shows `claim`. Revocation is asked elsewhere. What makes a grant used is on disk
    /// when this returns.
    pub fn admit(&self, node: NodeKey, claim: &Claim, wall_s: u64) -> Result<Welcome, AdmitError> {
        let Some(mesh_key) = &self.mesh_key else {
            return refuse(Refusal::NotAdmitting, IdentityError::NotAdmitting);
        };
        let certificate = match claim {
            Claim::Grant(bytes) => self.redeem(node, bytes, wall_s)?,
            Claim::Renewal(certificate) => self.prolong(node, certificate, wall_s)?,
        };
        let admits = certificate.term.roles.contain(Roles::ADMIT);
        Ok(Welcome {
            certificate,
            mesh_key: admits.then(|| *mesh_key.seed()),
            signing_keys: self.signing_keys.iter().map(SecretKey::to_secret_text).collect(),
            contacts: Vec::new(),
        })
    }

    fn redeem(&self, node: NodeKey, bytes: &[u8], wall_s: u64) -> Result<Certificate, AdmitError> {
        let grant = match Sealed::<Grant>::open(bytes) {
            Ok(grant) => grant,
            Err(error) => return refuse(Refusal::Forged, error),
        };
        if grant.mesh != self.mesh {
            return refuse(Refusal::OtherMesh, "the ticket is of another mesh");
        }
        if wall_s > grant.expires_s.saturating_add(CLOCK_SKEW_MAX_S) {
            let ago_s = wall_s - grant.expires_s;
            return refuse(Refusal::Expired, format!("the ticket expired {ago_s} s ago"));
        }
        match grant.once_at {
            None => {}
            Some(at) if at != self.node() => {
                return refuse(Refusal::OtherNode, "the ticket is good once, at another node");
            }
            Some(_) => match self.state().spent.spend(&grant, node, wall_s)? {
                Spending::Done => {}
                Spending::UsedByAnother => return refuse(Refusal::Spent, "the ticket was used by another node"),
                Spending::Full => return refuse(Refusal::Unable, "too many tickets were used lately"),
            },
        }
        Ok(certify(self.mesh_key()?, node, grant.roles, grant.membership_s, wall_s))
    }

    fn prolong(&self, node: NodeKey, old: &Certificate, wall_s: u64) -> Result<Certificate, AdmitError> {
        if old.mesh != self.mesh {
            return refuse(Refusal::OtherMesh, "the certificate is of another mesh");
        }
        if old.node != node {
            return refuse(Refusal::OtherKey, "the certificate is of another node");
        }
        if !old.is_signed() {
            return refuse(Refusal::Forged, FormatError::Forged("certificate"));
        }
        if !old.term.holds(wall_s) {
            return refuse(Refusal::Expired, "the certificate does not hold now");
        }
        let membership_s = old.term.expires_s.saturating_sub(old.term.not_before_s);
        Ok(certify(self.mesh_key()?, node, old.term.roles, membership_s, wall_s))
    }
}
