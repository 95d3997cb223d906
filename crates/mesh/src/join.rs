//! Becoming a member: a newcomer shows its ticket to a node of the mesh.

use crate::clock::wall_s;
use crate::identity::IdentityError;
use crate::links::endpoint::{OpenError, bind};
use crate::links::limits::DIAL_TIMEOUT;
use crate::links::{Links, Refusal, locate, short};
use crate::protocol::{Close, JOIN, name_at};
use iroh::endpoint::{Connection, Endpoint, ReadToEndError};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::certificate::Certificate;
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use shoal_wire::mesh::join::{Claim, JoinAnswer, JoinRequest, Refusal as Reason, Welcome};
use shoal_wire::mesh::ticket::{Contact, Ticket};
use shoal_wire::nix::signature::SecretKey;
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long one node is waited for before the next is asked too: more than a round trip anywhere.
const STAGGER: Duration = Duration::from_secs(1);

/// Why a node did not become a member, and what to do about it.
#[derive(Debug, Error)]
pub enum JoinError {
    #[error("the ticket is over, or the clocks differ: {0}. Have a new ticket made")]
    Expired(String),
    #[error("the ticket was good for one node, and another has used it. Have a new ticket made")]
    Spent,
    #[error("the ticket is not for the mesh of the node that it names: {0}. Have a new ticket made")]
    WrongMesh(String),
    #[error("this node was thrown out of the mesh. It can come back with a new node key")]
    Revoked,
    #[error("the node does not let this one in: {0}")]
    Refused(String),
    #[error("the answer is not one that can be used: {0}")]
    BadAnswer(String),
    #[error("none of the nodes in the ticket can be reached:{}", lines(.0))]
    Unreachable(Vec<Tried>),
    #[error("the ticket names no node")]
    NoContact,
    #[error(transparent)]
    Ticket(#[from] FormatError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A node that was asked, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    pub contact: Contact,
    pub why: String,
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}… at ", short(&self.contact.node))?;
        let addresses: Vec<String> = self.contact.addresses.iter().map(SocketAddr::to_string).collect();
        write!(f, "{}: {}", addresses.join(", "), self.why)
    }
}

fn lines(tried: &[Tried]) -> String {
    tried.iter().map(|tried| format!("\n  {tried}")).collect()
}

/// Asks the nodes of `ticket` to be let in, within `timeout`. Nothing of the ticket is shown to
/// whoever does not hold the key that it names. What is answered is for [`crate::identity::Identity::accept`].
pub async fn join(
    node_key: &SecretKey,
    bind_to: SocketAddr,
    ticket: &Ticket,
    name: &str,
    timeout: Duration,
) -> Result<Welcome, JoinError> {
    let grant = ticket.grant()?;
    // A single-use ticket is good at one node only.
    let is_of_use = |contact: &&Contact| grant.once_at.is_none_or(|at| at == contact.node);
    let contacts: Vec<Contact> = ticket.contacts.iter().filter(is_of_use).cloned().collect();
    if contacts.is_empty() {
        return Err(JoinError::NoContact);
    }
    let request =
        JoinRequest { claim: Claim::Grant(ticket.grant.clone()), name: name.to_owned(), extensions: BTreeMap::new() };
    let deadline = Instant::now() + timeout;
    let endpoint = bind(node_key, bind_to, &[]).await?;
    let welcome = ask_all(&endpoint, contacts, &request, deadline).await;
    let _ = tokio::time::timeout(crate::links::limits::CLOSE_TIMEOUT, endpoint.close()).await;
    let welcome = welcome?;
    check(&welcome.certificate, *node_key.public().bytes())?;
    match welcome.certificate.mesh == grant.mesh {
        true => Ok(welcome),
        false => Err(JoinError::WrongMesh("the certificate is of another mesh than the ticket".to_owned())),
    }
}

fn check(certificate: &Certificate, node: NodeKey) -> Result<(), JoinError> {
    if certificate.node != node || !certificate.is_signed() {
        return Err(JoinError::BadAnswer("the certificate is not of this node".to_owned()));
    }
    match certificate.term.holds(wall_s()) {
        true => Ok(()),
        false => Err(JoinError::Expired("the new certificate does not hold by this node's clock".to_owned())),
    }
}

/// Asks one after the other, the next when the one before has not answered for a while: the first certificate counts,
/// and so does the first refusal that all would give.
async fn ask_all(
    endpoint: &Endpoint,
    contacts: Vec<Contact>,
    request: &JoinRequest,
    deadline: Instant,
) -> Result<Welcome, JoinError> {
    let mut left = contacts.into_iter();
    let (mut asked, mut tried) = (JoinSet::new(), Vec::new());
    let mut next = Instant::now();
    loop {
        tokio::select! {
            () = sleep_until(next), if left.len() > 0 => {
                if let Some(contact) = left.next() {
                    asked.spawn(ask_in_time(endpoint.clone(), contact, request.clone(), deadline));
                }
                next = Instant::now() + STAGGER;
            }
            Some(ended) = asked.join_next() => match ended {
                Ok((_, Ok(welcome))) => return Ok(welcome),
                Ok((_, Err(Miss::Final(error)))) => return Err(error),
                Ok((contact, Err(Miss::Passing(why)))) => {
                    tried.push(Tried { contact, why });
                    next = Instant::now();
                }
                Err(error) => return Err(JoinError::BadAnswer(error.to_string())),
            },
            else => return Err(JoinError::Unreachable(tried)),
        }
    }
}

async fn ask_in_time(
    endpoint: Endpoint,
    contact: Contact,
    request: JoinRequest,
    deadline: Instant,
) -> (Contact, Result<Welcome, Miss>) {
    let until = deadline.min(Instant::now() + DIAL_TIMEOUT);
    let answer = timeout_at(until, ask(&endpoint, &contact, &request)).await;
    (contact, answer.unwrap_or_else(|_| Err(Miss::Passing("no answer in time".to_owned()))))
}

/// Why one node did not let this one in.
enum Miss {
    /// Another node may.
    Passing(String),
    Final(JoinError),
}

impl From<Refusal> for Miss {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Theirs(code, _) if code == Close::Barred as u64 => Miss::Final(JoinError::Revoked),
            other => Miss::Passing(other.to_string()),
        }
    }
}

/// The other end's key is the contact's: the connection is made by it.
async fn ask(endpoint: &Endpoint, contact: &Contact, request: &JoinRequest) -> Result<Welcome, Miss> {
    let addresses: Vec<SocketAddr> = contact.addresses.iter().copied().collect();
    let address = locate(&contact.node, &addresses).ok_or_else(|| Miss::Passing("its name is no key".to_owned()))?;
    let connected = endpoint.connect(address, &name_at(JOIN, &contact.node)).await;
    let connection = connected.map_err(|error| Miss::Passing(format!("{error:#}")))?;
    let answer = exchange(&connection, request).await;
    connection.close(Close::Done.code(), b"everything was said");
    match answer? {
        JoinAnswer::Welcome(welcome) => Ok(*welcome),
        JoinAnswer::Refused { refusal, reason } => Err(missed(refusal, reason)),
    }
}

fn missed(refusal: Reason, reason: String) -> Miss {
    Miss::Final(match refusal {
        Reason::Expired => JoinError::Expired(reason),
        Reason::Spent => JoinError::Spent,
        Reason::OtherMesh => JoinError::WrongMesh(reason),
        Reason::Revoked => JoinError::Revoked,
        Reason::Forged | Reason::OtherKey => JoinError::Refused(reason),
        Reason::OtherNode | Reason::NotAdmitting | Reason::Unable => return Miss::Passing(reason),
    })
}

async fn exchange(connection: &Connection, request: &JoinRequest) -> Result<JoinAnswer, Miss> {
    let lost = || Miss::from(Refusal::lost(connection));
    let (mut send, mut recv) = connection.open_bi().await.map_err(|_| lost())?;
    let is_sent = send.write_all(&encode(request)).await.is_ok() && send.finish().is_ok();
    if !is_sent {
        return Err(lost());
    }
    match recv.read_to_end(JoinAnswer::LEN_MAX).await {
        Ok(bytes) => decode(&bytes).map_err(|error| Miss::Final(JoinError::BadAnswer(error.to_string()))),
        Err(ReadToEndError::TooLong) => Err(Miss::Final(JoinError::BadAnswer("it is too long".to_owned()))),
        Err(ReadToEndError::Read(_)) => Err(lost()),
    }
}

impl Links {
    /// Gets this node another certificate of the same roles: by its own mesh key, or from `admitting`, a member with
    /// [`shoal_wire::mesh::certificate::Roles::ADMIT`]. Links that are made from now on show it. Worth it when
    /// [`crate::identity::Identity::is_old`].
    pub async fn renew(&self, admitting: NodeKey, name: &str) -> Result<Certificate, JoinError> {
        let identity = self.identity();
        if identity.admits() {
            identity.renew(wall_s())?;
            return Ok(identity.certificate());
        }
        let request = JoinRequest {
            claim: Claim::Renewal(identity.certificate()),
            name: name.to_owned(),
            extensions: BTreeMap::new(),
        };
        let contact = Contact { node: admitting, addresses: self.known_addresses(&admitting).into_iter().collect() };
        let until = Instant::now() + DIAL_TIMEOUT;
        let welcome = ask_all(self.endpoint(), vec![contact], &request, until).await?;
        identity.renewed(welcome.certificate.clone(), wall_s())?;
        Ok(welcome.certificate)
    }
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
