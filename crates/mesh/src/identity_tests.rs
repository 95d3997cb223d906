use super::*;
use crate::fixture::{certificate, key, public};
use shoal_wire::mesh::frame::Fact;
use shoal_wire::mesh::join::{Claim, Refusal};
use shoal_wire::mesh::sealed::{Sealed, SealedBytes};
use shoal_wire::mesh::ticket::{Contact, Ticket};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const NOW_S: u64 = 2_000_000_000;

struct Mesh {
    dir: tempfile::TempDir,
    admitting: Identity,
}

impl Mesh {
    /// Node 1 makes it.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admitting = Identity::create(dir.path(), key(1), &[key(50)], NOW_S).unwrap();
        Self { dir, admitting }
    }

    fn restarted(self) -> Self {
        let admitting = Identity::open(self.dir.path(), key(1)).unwrap().unwrap();
        Self { admitting, ..self }
    }

    fn ticket(&self, reusable: bool, roles: Roles) -> Ticket {
        let contact = Contact { node: self.admitting.node(), addresses: Default::default() };
        let (ttl_s, membership_s) = (3_600, 1_000_000);
        self.admitting
            .invite(Invitation { reusable, roles, ttl_s, membership_s, contacts: vec![contact] }, NOW_S)
            .unwrap()
    }

    fn admit(&self, node: u8, ticket: &Ticket, wall_s: u64) -> Result<Welcome, Refusal> {
        match self.admitting.admit(public(node), &Claim::Grant(ticket.grant.clone()), wall_s) {
            Ok(welcome) => Ok(welcome),
            Err(AdmitError::Refused { refusal, .. }) => Err(refusal),
            Err(AdmitError::Identity(error)) => panic!("{error}"),
        }
    }
}

#[test]
fn a_new_mesh_is_there_after_a_restart_and_its_secrets_are_its_owners() {
    let mesh = Mesh::new();
    let made = mesh.admitting.certificate();
    assert!(made.is_signed() && made.term.roles.contain(Roles::ADMIT) && made.node == public(1));
    let mesh = mesh.restarted();
    assert_eq!(mesh.admitting.certificate(), made);
    assert!(mesh.admitting.admits());
    assert_eq!(mesh.admitting.signing_keys()[0].public(), key(50).public());
    for name in [MESH_KEY, SIGNING_KEYS] {
        let mode = fs::metadata(mesh.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    assert!(matches!(Identity::create(mesh.dir.path(), key(1), &[], NOW_S), Err(IdentityError::Member)));
    assert!(matches!(Identity::open(mesh.dir.path(), key(2)), Err(IdentityError::OtherNode(_))));
    Identity::leave(mesh.dir.path()).unwrap();
    assert!(Identity::open(mesh.dir.path(), key(1)).unwrap().is_none());
    assert_eq!(fs::read_dir(mesh.dir.path()).unwrap().count(), 0);
}

#[test]
fn a_single_use_ticket_is_good_for_one_node_also_after_a_restart() {
    let mesh = Mesh::new();
    let ticket = mesh.ticket(false, Roles::STORE);
    let welcome = mesh.admit(2, &ticket, NOW_S).unwrap();
    assert_eq!((welcome.certificate.node, welcome.certificate.term.roles), (public(2), Roles::STORE));
    assert_eq!(welcome.certificate.term.expires_s, NOW_S + 1_000_000);
    assert!(welcome.mesh_key.is_none());
    assert_eq!(mesh.admit(3, &ticket, NOW_S), Err(Refusal::Spent));
    // Its answer may have been lost on the way.
    assert!(mesh.admit(2, &ticket, NOW_S).is_ok());
    let mesh = mesh.restarted();
    assert_eq!(mesh.admit(3, &ticket, NOW_S), Err(Refusal::Spent));
    let others = mesh.ticket(false, Roles::STORE);
    assert!(mesh.admit(3, &others, NOW_S).is_ok());
}

#[test]
fn a_list_of_spent_tickets_that_is_damaged_lets_nobody_in() {
    let mesh = Mesh::new();
    mesh.admit(2, &mesh.ticket(false, Roles::STORE), NOW_S).unwrap();
    fs::write(mesh.dir.path().join(SPENT_GRANTS), b"x").unwrap();
    assert!(matches!(Identity::open(mesh.dir.path(), key(1)), Err(IdentityError::Damaged { .. })));
}

#[test]
fn a_reusable_ticket_is_good_for_many_until_it_expires() {
    let mesh = Mesh::new();
    let ticket = mesh.ticket(true, Roles::BUILD);
    assert!(mesh.admit(2, &ticket, NOW_S).is_ok() && mesh.admit(3, &ticket, NOW_S + 3_600).is_ok());
    assert_eq!(mesh.admit(4, &ticket, NOW_S + 3_600 + 301), Err(Refusal::Expired));
}

#[test]
fn tickets_of_others_are_refused() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let ticket = other.ticket(true, Roles::STORE);
    assert_eq!(mesh.admit(2, &ticket, NOW_S), Err(Refusal::OtherMesh));
    let mut forged = mesh.ticket(true, Roles::STORE);
    *forged.grant.last_mut().unwrap() ^= 1;
    assert_eq!(mesh.admit(2, &forged, NOW_S), Err(Refusal::Forged));
    // Another node with the same mesh key does not know whether it was used.
    let dir = tempfile::tempdir().unwrap();
    let secret = SecretKey::from_seed("mesh", *mesh.admitting.mesh_key.as_ref().unwrap().seed()).unwrap();
    let second = Identity::with_secret(dir.path(), key(9), secret, NOW_S).unwrap();
    let claim = Claim::Grant(mesh.ticket(false, Roles::STORE).grant);
    let refused = second.admit(public(2), &claim, NOW_S).unwrap_err();
    assert!(matches!(refused, AdmitError::Refused { refusal: Refusal::OtherNode, .. }));
}

#[test]
fn a_welcome_makes_a_member_that_can_let_others_in_if_its_role_says_so() {
    let mesh = Mesh::new();
    for (roles, admits) in [(Roles::STORE, false), (Roles::STORE.with(Roles::ADMIT), true)] {
        let dir = tempfile::tempdir().unwrap();
        let welcome = mesh.admit(2, &mesh.ticket(false, roles), NOW_S).unwrap();
        let stolen = Identity::accept(dir.path(), key(3), &welcome, NOW_S);
        assert!(matches!(stolen, Err(IdentityError::Format(_))));
        let joined = Identity::accept(dir.path(), key(2), &welcome, NOW_S).unwrap();
        assert_eq!((joined.admits(), joined.mesh()), (admits, mesh.admitting.mesh()));
        let again = Identity::open(dir.path(), key(2)).unwrap().unwrap();
        assert_eq!((again.admits(), again.certificate()), (admits, welcome.certificate));
        assert_eq!(again.signing_keys()[0].public(), key(50).public());
        assert_eq!(again.revoke(public(1), NOW_S).is_ok(), admits);
        let elsewhere = Mesh::new();
        let other = elsewhere.admit(2, &elsewhere.ticket(true, roles), NOW_S).unwrap();
        assert!(matches!(Identity::accept(dir.path(), key(2), &other, NOW_S), Err(IdentityError::OtherMesh)));
    }
}

#[test]
fn who_joins_again_with_fewer_roles_keeps_no_mesh_key() {
    let mesh = Mesh::new();
    let dir = tempfile::tempdir().unwrap();
    for (roles, admits) in [(Roles::ADMIT, true), (Roles::STORE, false)] {
        let welcome = mesh.admit(2, &mesh.ticket(true, roles), NOW_S).unwrap();
        Identity::accept(dir.path(), key(2), &welcome, NOW_S).unwrap();
        assert_eq!(Identity::open(dir.path(), key(2)).unwrap().unwrap().admits(), admits);
    }
}

#[test]
fn a_revocation_outlasts_every_certificate_of_the_node() {
    let mesh = Mesh::new();
    let revocation = mesh.admitting.revoke(public(2), NOW_S).unwrap();
    assert_eq!(Sealed::open(revocation.bytes()).unwrap(), revocation);
    assert!(revocation.until_s >= NOW_S + MEMBERSHIP_S_MAX);
    assert!(matches!(mesh.admitting.revoke(public(1), NOW_S), Err(IdentityError::Itself)));
}

#[test]
fn a_certificate_is_renewed_when_half_of_its_time_is_over() {
    let mesh = Mesh::new();
    assert!(!mesh.admitting.renew(NOW_S + MEMBERSHIP_S / 2).unwrap());
    assert!(mesh.admitting.renew(NOW_S + MEMBERSHIP_S / 2 + 1).unwrap());
    let renewed = mesh.admitting.certificate();
    assert_eq!(renewed.term.expires_s, NOW_S + MEMBERSHIP_S / 2 + 1 + MEMBERSHIP_S);
    assert_eq!(mesh.restarted().admitting.certificate(), renewed);
}

#[test]
fn a_certificate_of_another_node_or_one_that_is_over_is_not_renewed() {
    let mesh = Mesh::new();
    let welcome = mesh.admit(2, &mesh.ticket(true, Roles::BUILD), NOW_S).unwrap();
    let later = NOW_S + 900_000;
    let renew = |node: u8, certificate: &Certificate, wall_s| match mesh.admitting.admit(
        public(node),
        &Claim::Renewal(certificate.clone()),
        wall_s,
    ) {
        Ok(welcome) => Ok(welcome.certificate.term),
        Err(AdmitError::Refused { refusal, .. }) => Err(refusal),
        Err(AdmitError::Identity(error)) => panic!("{error}"),
    };
    let term = Term { roles: Roles::BUILD, not_before_s: later, expires_s: later + 1_000_000 };
    assert_eq!(renew(2, &welcome.certificate, later), Ok(term));
    assert_eq!(renew(3, &welcome.certificate, later), Err(Refusal::OtherKey));
    assert_eq!(renew(2, &welcome.certificate, NOW_S + 1_000_301), Err(Refusal::Expired));
    assert_eq!(renew(2, &certificate(7, 2, NOW_S, later + 9), later), Err(Refusal::OtherMesh));
    let more = Certificate { term: Term { roles: Roles::ADMIT, ..welcome.certificate.term }, ..welcome.certificate };
    assert_eq!(renew(2, &more, later), Err(Refusal::Forged));
}

#[test]
fn nodes_that_share_the_secret_certify_themselves_and_do_not_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = |wall_s| Identity::with_secret(dir.path(), key(2), key(9), wall_s).unwrap().certificate();
    let first = open(NOW_S);
    assert_eq!(open(NOW_S + 1_000), first);
    assert!(open(NOW_S + MEMBERSHIP_S).term.expires_s > first.term.expires_s);
    assert!(!dir.path().join(MESH_KEY).exists());
    let other = Identity::with_secret(dir.path(), key(2), key(8), NOW_S);
    assert!(matches!(other, Err(IdentityError::OtherMesh)));
}

#[test]
fn an_incarnation_is_never_used_twice() {
    let mesh = Mesh::new();
    assert_eq!(mesh.admitting.begin_incarnation().unwrap(), 1);
    mesh.admitting.keep_incarnation(7).unwrap();
    mesh.admitting.keep_incarnation(3).unwrap();
    let mesh = mesh.restarted();
    assert_eq!(mesh.admitting.begin_incarnation().unwrap(), 8);
    assert_eq!(mesh.restarted().admitting.begin_incarnation().unwrap(), 9);
}

#[test]
fn facts_come_back_whole_or_not_at_all() {
    let mesh = Mesh::new();
    assert_eq!(mesh.admitting.facts(), vec![]);
    let facts = vec![Fact::Record(SealedBytes([1; 300][..].into())), Fact::Suspicion(SealedBytes([2; 90][..].into()))];
    mesh.admitting.keep_facts(facts.clone()).unwrap();
    let mesh = mesh.restarted();
    assert_eq!(mesh.admitting.facts(), facts);
    let path = mesh.dir.path().join(FACTS);
    let whole = fs::read(&path).unwrap();
    for at in [0, 1, 50, whole.len() - 1] {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, damaged).unwrap();
        assert_eq!(mesh.admitting.facts(), vec![]);
        fs::write(&path, &whole[..at]).unwrap();
        assert_eq!(mesh.admitting.facts(), vec![]);
    }
}
