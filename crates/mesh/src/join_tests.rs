use super::*;
use crate::fixture::*;
use crate::identity::{Identity, Invitation};
use shoal_wire::mesh::certificate::Roles;
use shoal_wire::mesh::sealed::Sealed;

/// Node 1 with the mesh key in its directory.
async fn founder() -> Node {
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::create(dir.path(), key(1), &[key(50)], wall_s()).unwrap();
    Node::of(dir, identity, loopback()).await
}

fn invitation(node: &Node, reusable: bool) -> Invitation {
    let contact = Contact { node: node.key(), addresses: node.links.addresses().into_iter().collect() };
    let roles = Roles::STORE.with(Roles::BUILD);
    Invitation { reusable, roles, ttl_s: 3_600, membership_s: 1_000_000, contacts: vec![contact] }
}

fn ticket(node: &Node, reusable: bool) -> Ticket {
    node.identity.invite(invitation(node, reusable), wall_s()).unwrap()
}

async fn ask_in(seed: u8, ticket: &Ticket) -> Result<Welcome, JoinError> {
    within(join(&key(seed), loopback(), ticket, "newcomer", PATIENCE)).await
}

#[tokio::test]
async fn a_newcomer_becomes_a_member_that_talks() {
    let mut founder = founder().await;
    let ticket: Ticket = ticket(&founder, false).to_string().parse().unwrap();
    let welcome = ask_in(2, &ticket).await.unwrap();
    assert_eq!(welcome.signing_keys, [key(50).to_secret_text()]);
    let dir = tempfile::tempdir().unwrap();
    let identity = Identity::accept(dir.path(), key(2), &welcome, wall_s()).unwrap();
    let newcomer = Node::of(dir, identity, loopback()).await;
    for contact in &welcome.contacts {
        let addresses: Vec<_> = contact.addresses.iter().copied().collect();
        newcomer.links.learn_addresses(contact.node, &addresses);
    }
    newcomer.links.send_frame(founder.key(), vec![1]);
    assert_eq!(founder.frame().await, (newcomer.key(), vec![1]));
    // The next newcomer hears of both.
    let contacts = ask_in(3, &self::ticket(&founder, true)).await.unwrap().contacts;
    assert_eq!(contacts.iter().map(|contact| contact.node).collect::<Vec<_>>(), [public(1), public(2)]);
    assert_eq!(contacts[1].addresses.iter().copied().collect::<Vec<_>>(), newcomer.links.addresses());
    // A node without the mesh key lets nobody in.
    let elsewhere = Contact { node: newcomer.key(), addresses: newcomer.links.addresses().into_iter().collect() };
    let misled = Ticket { contacts: vec![elsewhere], ..self::ticket(&founder, true) };
    let Err(JoinError::Unreachable(tried)) = ask_in(4, &misled).await else { panic!("let in") };
    assert_eq!(tried[0].why, "the mesh key is not here: ask a node that lets nodes in");
}

#[tokio::test]
async fn a_single_use_ticket_lets_one_node_in_also_when_the_other_was_restarted() {
    let founder = founder().await;
    let ticket = ticket(&founder, false);
    assert_eq!(ask_in(2, &ticket).await.unwrap().certificate.node, public(2));
    assert!(matches!(ask_in(3, &ticket).await, Err(JoinError::Spent)));
    let Node { dir, links, .. } = founder;
    let address = links.local_addr();
    within(links.close()).await;
    drop(links);
    let identity = Identity::open(dir.path(), key(1)).unwrap().unwrap();
    let _founder = within(Node::again(dir, identity, address)).await;
    let refused = ask_in(3, &ticket).await.unwrap_err();
    assert!(matches!(refused, JoinError::Spent), "{refused}");
    assert!(refused.to_string().ends_with("Have a new ticket made"));
}

#[tokio::test]
async fn a_reusable_ticket_lets_two_nodes_in_and_an_expired_one_none() {
    let founder = founder().await;
    let ticket = ticket(&founder, true);
    for seed in [2, 3] {
        assert_eq!(ask_in(seed, &ticket).await.unwrap().certificate.node, public(seed));
    }
    let old = founder.identity.invite(invitation(&founder, true), wall_s() - 10_000).unwrap();
    let refused = ask_in(4, &old).await.unwrap_err();
    assert!(matches!(&refused, JoinError::Expired(why) if why.starts_with("the ticket expired")), "{refused}");
}

#[tokio::test]
async fn who_was_thrown_out_does_not_come_back_by_a_ticket() {
    let founder = founder().await;
    founder.links.bar(public(2));
    let refused = ask_in(2, &ticket(&founder, true)).await.unwrap_err();
    assert!(matches!(refused, JoinError::Revoked), "{refused}");
}

/// Whoever listens at the address of a contact sees no grant, and the error names who was tried.
#[tokio::test]
async fn a_ticket_is_shown_to_the_nodes_that_it_names_only() {
    let (founder, impostor) = (founder().await, Node::of_mesh(9, 201).await);
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let mut ticket = ticket(&founder, true);
    let impostors = impostor.links.addresses().into_iter().collect();
    ticket.contacts[0].addresses = impostors;
    let nobody = Contact { node: public(7), addresses: [silent.local_addr().unwrap()].into() };
    ticket.contacts.push(nobody.clone());
    let Err(JoinError::Unreachable(tried)) = ask_in(2, &ticket).await else { panic!("let in") };
    assert_eq!(tried.len(), 2);
    let text = JoinError::Unreachable(tried).to_string();
    assert!(text.contains(&short(&founder.key())) && text.contains(&impostor.links.local_addr().to_string()), "{text}");
    assert!(text.contains(&short(&nobody.node)) && text.contains("no answer in time"), "{text}");
    // The good contact is found behind bad ones.
    ticket.contacts.push(Contact { node: founder.key(), addresses: founder.links.addresses().into_iter().collect() });
    ticket.contacts.remove(1);
    ask_in(2, &ticket).await.unwrap();
}

#[tokio::test]
async fn a_ticket_of_another_mesh_is_an_error_that_says_so() {
    let (founder, other) = (founder().await, Node::of_mesh(9, 201).await);
    let mut ticket = ticket(&founder, true);
    ticket.contacts = vec![invitation(&other, true).contacts.remove(0)];
    let refused = ask_in(2, &ticket).await.unwrap_err();
    assert!(matches!(refused, JoinError::WrongMesh(_)), "{refused}");
    let grant = Sealed::<shoal_wire::mesh::ticket::Grant>::open(&ticket.grant).unwrap();
    assert_eq!(grant.mesh, founder.identity.mesh());
    assert!(matches!(ask_in(2, &Ticket { contacts: vec![], ..ticket }).await, Err(JoinError::NoContact)));
}

#[tokio::test]
async fn a_member_renews_its_certificate_at_a_node_with_the_mesh_key() {
    let admitting = Node::new(1).await;
    let now = wall_s();
    let old = certificate(MESH, 2, now - 1_000, now + 100);
    let member = Node::with_certificate(2, &old).await;
    assert!(member.identity.is_old(now) && !member.identity.admits());
    member.knows(&admitting);
    let new = within(member.links.renew(admitting.key(), "member")).await.unwrap();
    assert_eq!((new.term.roles, new.node), (old.term.roles, old.node));
    assert!(new.term.expires_s >= now + 1_100);
    let kept = Identity::open(member.dir.path(), key(2)).unwrap().unwrap();
    assert_eq!((kept.certificate(), member.identity.certificate()), (new.clone(), new));
    // Who has the key needs nobody.
    assert_eq!(within(admitting.links.renew(public(2), "admitting")).await.unwrap(), admitting.identity.certificate());
    admitting.links.bar(member.key());
    assert!(matches!(within(member.links.renew(admitting.key(), "member")).await, Err(JoinError::Revoked)));
}
