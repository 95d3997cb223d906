//! The mesh's formats: each value has one encoding, what is outside its limits is refused, and nothing that somebody
//! answers for can be changed, or passed off as something else.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use shoal_wire::mesh::announcement::{
    ENCLOSED_LEN_MAX, Enclosed, Found, HolderMessage, Holding, KEYS_MAX, SOURCES_MAX, Wanted,
};
use shoal_wire::mesh::certificate::{CLOCK_SKEW_MAX_S, Certificate, Roles, Term};
use shoal_wire::mesh::format::{Format, FormatError, decode, encode};
use shoal_wire::mesh::frame::{Digest, Fact, Frame};
use shoal_wire::mesh::hello::Hello;
use shoal_wire::mesh::join::{
    Claim, JoinAnswer, JoinRequest, REASON_LEN_MAX, Refusal, SIGNING_KEY_LEN_MAX, SIGNING_KEYS_MAX, Welcome,
};
use shoal_wire::mesh::node_record::{Load, NodeRecord, Presence, RecordVersion};
use shoal_wire::mesh::path_record::PathRecord;
use shoal_wire::mesh::revocation::Revocation;
use shoal_wire::mesh::sealed::{Sealed, SealedBytes, Signable};
use shoal_wire::mesh::suspicion::Suspicion;
use shoal_wire::mesh::ticket::{Contact, Grant, Ticket};
use shoal_wire::nix::signature::SecretKey;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::SocketAddr;

fn key(seed: u8) -> SecretKey {
    SecretKey::from_seed("test", [seed; 32]).unwrap()
}

fn public(seed: u8) -> [u8; 32] {
    *key(seed).public().bytes()
}

const TERM: Term = Term { roles: Roles(3), not_before_s: 1_000, expires_s: 2_000_000_000 };

/// A record of node 1 in mesh 0.
pub(crate) fn record() -> NodeRecord {
    let mut record = NodeRecord::new(&Certificate::issue(&key(0), public(1), TERM), "alpha");
    record.addresses = vec!["192.0.2.1:7433".parse().unwrap(), "[2001:db8::1]:7433".parse().unwrap()];
    record.systems = ["x86_64-linux", "i686-linux"].map(String::from).into();
    record.features = ["kvm", "big-parallel", "benchmark"].map(String::from).into();
    record
}

prop_compose! {
    fn records()(
        incarnation in 1..1000u64, sequence in 0..1000u64, presence in 0..3usize, name in "[a-z][a-z0-9-]{0,20}",
        addresses in vec(addresses_of_any_kind(), 0..8), systems in btree_set("[a-z0-9_]{1,8}-linux", 0..4),
        load in any::<(u32, u32, u64, u64, u64)>(), extensions in btree_map(any::<u16>(), vec(any::<u8>(), 0..256), 0..4)
    ) -> NodeRecord {
        let mut record = record();
        record.version = RecordVersion { incarnation, sequence };
        record.presence = [Presence::Active, Presence::Draining, Presence::Left][presence];
        (record.name, record.addresses, record.systems) = (name, addresses, systems);
        record.extensions = extensions;
        let (running, queued, free_memory_mib, free_store_mib, demand_cpu_s) = load;
        record.load = Load { running, queued, free_memory_mib, free_store_mib, demand_cpu_s, ..Load::default() };
        record
    }
}

/// Without the flow labels and scopes of IPv6, which mean nothing to others and are not carried.
fn addresses_of_any_kind() -> impl Strategy<Value = SocketAddr> {
    any::<(std::net::IpAddr, u16)>().prop_map(SocketAddr::from)
}

fn facts() -> impl Strategy<Value = Vec<Fact>> {
    let bytes = || vec(any::<u8>(), 0..140).prop_map(|bytes| SealedBytes(bytes.into()));
    let fact = prop_oneof![
        bytes().prop_map(Fact::Record),
        bytes().prop_map(Fact::Suspicion),
        bytes().prop_map(Fact::Revocation)
    ];
    vec(fact, 0..8)
}

fn frames() -> impl Strategy<Value = Frame> {
    let digest = any::<(u64, u64, u64, u32)>().prop_map(|(member, incarnation, sequence, suspicions)| Digest {
        member,
        version: RecordVersion { incarnation, sequence },
        suspicions,
    });
    prop_oneof![
        any::<(u64, Option<u64>)>().prop_map(|(nonce, suspected)| Frame::Probe { nonce, suspected }),
        (any::<bool>(), facts()).prop_map(|(pushed, facts)| Frame::Facts { pushed, facts }),
        (any::<u64>(), 0..8u32, any::<u32>()).prop_map(|(salt, log, revocations)| Frame::SyncRequest {
            salt,
            hashes: vec![7; 1 << log],
            revocations
        }),
        (btree_set(0..64u16, 0..9), vec(digest, 0..9), facts(), any::<bool>()).prop_map(
            |(differing, digests, facts, more)| Frame::SyncDigests {
                buckets: 64,
                differing: differing.into_iter().collect(),
                digests,
                facts,
                more
            }
        ),
        vec(any::<u64>(), 0..9).prop_map(Frame::Wants),
    ]
}

pub(crate) fn survives<T: Format + PartialEq + Debug>(value: &T) {
    assert_eq!(&decode::<T>(&encode(value)).unwrap(), value);
}

/// Other bytes are refused, or are the one encoding of another value.
pub(crate) fn strict<T: Format>(value: &T, at: prop::sample::Index, byte: u8, cut: bool) {
    let mut bytes = encode(value);
    let at = at.index(bytes.len());
    match cut {
        true => bytes.truncate(at),
        false => bytes[at] = byte,
    }
    if let Ok(other) = decode::<T>(&bytes) {
        assert_eq!(encode(&other), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn formats_survive_and_are_strict(record in records(), frame in frames(), at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        survives(&record);
        survives(&frame);
        strict(&record, at, byte, cut);
        strict(&frame, at, byte, cut);
    }

    /// Whoever changes one byte of a sealed record makes it none.
    #[test]
    fn a_sealed_record_cannot_be_changed(record in records(), at in any::<prop::sample::Index>(), flip in 1..=255u8) {
        let sealed = Sealed::seal(record.clone(), &key(1)).unwrap();
        prop_assert_eq!(&*NodeRecord::open(sealed.bytes()).unwrap(), &record);
        let mut bytes = sealed.bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(NodeRecord::open(&bytes).is_err());
    }

    #[test]
    fn a_ticket_survives_as_text(id: [u8; 16], once: bool, addresses in btree_set(addresses_of_any_kind(), 0..4), at in any::<prop::sample::Index>()) {
        let grant = Grant { mesh: public(0), id, once_at: once.then(|| public(1)), roles: Roles::BUILD, expires_s: 9, membership_s: 5 };
        let sealed = Sealed::seal(grant.clone(), &key(0)).unwrap();
        let ticket = Ticket { grant: sealed.bytes().to_vec(), contacts: vec![Contact { node: public(1), addresses }] };
        let text = ticket.to_string();
        let read: Ticket = format!(" {text}\n").parse().unwrap();
        prop_assert_eq!(&*read.grant().unwrap(), &grant);
        prop_assert_eq!(read, ticket);
        let at = at.index(text.len());
        prop_assert!(text[..at].parse::<Ticket>().is_err(), "cut");
        let other = if text.as_bytes()[at] == b'4' { "5" } else { "4" };
        let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
        prop_assert!(wrong.parse::<Ticket>().is_err(), "one letter wrong");
    }
}

fn refused<T: Signable>(bytes: &[u8]) -> FormatError {
    match Sealed::<T>::open(bytes) {
        Err(error) => error,
        Ok(_) => panic!("opened"),
    }
}

#[test]
fn only_the_author_can_seal() {
    assert_eq!(Sealed::seal(record(), &key(2)).unwrap_err(), FormatError::Forged("node record"));
    // A certificate that another mesh issued for the same names.
    let mut other = record();
    other.certified = Certificate::issue(&key(9), public(1), TERM).signature;
    let sealed = Sealed::seal(other, &key(1)).unwrap();
    assert_eq!(NodeRecord::open(sealed.bytes()).unwrap_err(), FormatError::Forged("certificate"));
}

/// A longer term or another role than the mesh key signed is no certificate.
#[test]
fn a_certificate_is_of_its_term() {
    let good = Certificate::issue(&key(0), public(1), TERM);
    assert!(good.is_signed());
    survives(&good);
    assert!(!Certificate { node: public(2), ..good.clone() }.is_signed());
    assert!(!Certificate { term: Term { roles: Roles(7), ..TERM }, ..good.clone() }.is_signed());
    assert!(!Certificate { term: Term { expires_s: TERM.expires_s + 1, ..TERM }, ..good }.is_signed());
    assert!(TERM.holds(TERM.expires_s + CLOCK_SKEW_MAX_S) && !TERM.holds(TERM.expires_s + CLOCK_SKEW_MAX_S + 1));
    assert!(TERM.holds(TERM.not_before_s - CLOCK_SKEW_MAX_S) && !TERM.holds(TERM.not_before_s - CLOCK_SKEW_MAX_S - 1));
}

/// Two kinds of values of one layout, by one key: the signature of one is not that of the other.
#[test]
fn signatures_are_of_one_kind() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Same(Revocation);
    impl Format for Same {
        const WHAT: &'static str = "something else";
        const VERSION: u8 = Revocation::VERSION;
        const LEN_MAX: usize = Revocation::LEN_MAX;
        fn check(&self) -> Result<(), FormatError> {
            Ok(())
        }
    }
    impl Signable for Same {
        fn author(&self) -> &[u8; 32] {
            &self.0.mesh
        }
    }
    let sealed = Sealed::seal(Revocation { mesh: public(0), node: public(1), until_s: 7 }, &key(0)).unwrap();
    assert!(Sealed::<Revocation>::open(sealed.bytes()).is_ok());
    assert_eq!(refused::<Same>(sealed.bytes()), FormatError::Forged("something else"));
}

#[test]
fn limits_hold() {
    let limit = |change: fn(&mut NodeRecord)| {
        let mut record = record();
        change(&mut record);
        match decode::<NodeRecord>(&encode(&record)) {
            Err(FormatError::Limit { field, .. }) => field,
            Err(FormatError::TooLong { .. }) => "length",
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(limit(|r| r.name = "a b".into()), "name");
    assert_eq!(limit(|r| r.name = "a".repeat(64)), "name");
    assert_eq!(limit(|r| r.addresses = vec![r.addresses[0]; 9]), "addresses");
    assert_eq!(limit(|r| r.systems = (0..17).map(|n| format!("s{n}")).collect()), "systems");
    assert_eq!(limit(|r| r.features = ["\u{1b}[2J".to_owned()].into()), "features");
    assert_eq!(limit(|r| r.capacity.weight = 0), "weight");
    assert_eq!(limit(|r| r.version.incarnation = u64::MAX), "incarnation");
    assert_eq!(limit(|r| r.extensions = [(1, vec![0; 257])].into()), "extensions");
    assert_eq!(limit(|r| r.extensions = (0..10).map(|n| (n, vec![0; 250])).collect()), "length");
    let keys = HolderMessage::Drops(vec![[0; 32]; KEYS_MAX + 1]);
    assert!(matches!(decode::<HolderMessage>(&encode(&keys)), Err(FormatError::Limit { field: "keys", .. })));
    let buckets = Frame::SyncRequest { salt: 0, hashes: vec![0; 3], revocations: 0 };
    assert!(matches!(decode::<Frame>(&encode(&buckets)), Err(FormatError::Limit { field: "buckets", .. })));
    let mut newer = encode(&record());
    newer[0] = 2;
    assert!(matches!(decode::<NodeRecord>(&newer), Err(FormatError::Version { found: 2, known: 1, .. })));
}

#[test]
fn holder_messages_survive() {
    let holding = Holding { key: [1; 32], content: [2; 16] };
    survives(&HolderMessage::Holds(vec![holding; KEYS_MAX]));
    assert!(encode(&HolderMessage::Holds(vec![holding; KEYS_MAX])).len() <= 48 * KEYS_MAX + 8);
    survives(&HolderMessage::Copy(vec![Wanted { holding, from: vec![[3; 32]; SOURCES_MAX] }]));
    let keep = |len| {
        let enclosed = Enclosed { record: vec![4; 1_000], nar: vec![5; len - 1_000] };
        HolderMessage::Keep { holding, enclosed }
    };
    survives(&keep(ENCLOSED_LEN_MAX));
    let long = decode::<HolderMessage>(&encode(&keep(ENCLOSED_LEN_MAX + 1)));
    assert!(matches!(long, Err(FormatError::Limit { field: "enclosed path", .. })));
    survives(&HolderMessage::Dropped { id: 7, keys: vec![] });
    survives(&HolderMessage::Begins { life: 9, holds_nothing: true });
    survives(&HolderMessage::Lookup { id: 7, keys: vec![[1; 32]] });
    let found = Found { key: [1; 32], holders: vec![[3; 32]; 16], record: vec![1; 500] };
    survives(&HolderMessage::Answer { id: 7, found: vec![found; 5] });
}

/// The tag is of contents: neither who says it, nor signatures, nor how it was cut into chunks.
#[test]
fn content_tags_are_of_contents() {
    let path = |name: &str| format!("{}-{name}", "0".repeat(32)).parse().unwrap();
    let record = PathRecord {
        author: public(1),
        path: path("a"),
        nar_hash: [4; 32],
        nar_size: 96,
        references: BTreeSet::from([path("b")]),
        content_root: [5; 32],
        deriver: Some(path("a.drv")),
        ca: None,
        signatures: BTreeSet::from([key(3).sign(b"x")]),
    };
    let sealed = Sealed::seal(record.clone(), &key(1)).unwrap();
    assert_eq!(*Sealed::<PathRecord>::open(sealed.bytes()).unwrap(), record);
    let tag = record.content_tag();
    let same = PathRecord { author: public(2), content_root: [6; 32], signatures: BTreeSet::new(), ..record.clone() };
    assert_eq!(same.content_tag(), tag);
    assert_ne!(PathRecord { nar_hash: [5; 32], ..record.clone() }.content_tag(), tag);
    assert_ne!(PathRecord { references: BTreeSet::new(), ..record }.content_tag(), tag);
}

/// Nodes of different builds must agree on every byte.
#[test]
fn encodings_do_not_drift() {
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex()[..16].to_owned();
    let record = Sealed::seal(record(), &key(1)).unwrap();
    let suspicion = Suspicion { mesh: public(0), author: public(1), subject: public(2), incarnation: 3 };
    let suspicion = Sealed::seal(suspicion, &key(1)).unwrap();
    let facts = vec![Fact::Record(record.bytes().clone()), Fact::Suspicion(suspicion.bytes().clone())];
    let facts_len: usize = facts.iter().map(Fact::frame_len).sum();
    let frame = Frame::Facts { pushed: true, facts };
    let lens = (record.bytes().len(), suspicion.bytes().len(), encode(&frame).len());
    assert_eq!(lens.2, 4 + facts_len);
    let all = [record.bytes(), suspicion.bytes(), &encode(&frame)[..]].map(hash);
    expect_test::expect![[r#"(309, 162, 481) ["5d1663e4b11ed8f3", "bf8cbfe54803e04b", "47b1b64cf31cfc6f"]"#]]
        .assert_eq(&format!("{lens:?} {all:?}"));
}

fn request(claim: Claim) -> JoinRequest {
    JoinRequest { claim, name: "alpha".into(), extensions: [(1, vec![2; 3])].into() }
}

fn welcome() -> Welcome {
    let term = Term { roles: Roles::STORE.with(Roles::ADMIT), ..TERM };
    Welcome {
        certificate: Certificate::issue(&key(0), public(1), term),
        mesh_key: Some([7; 32]),
        signing_keys: vec![key(5).to_secret_text()],
        contacts: vec![Contact { node: public(2), addresses: record().addresses.into_iter().collect() }],
    }
}

fn hello() -> Hello {
    Hello { extensions: [(1, vec![2; 3])].into(), ..Hello::new(Certificate::issue(&key(0), public(1), TERM)) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn first_words_are_strict(at in any::<prop::sample::Index>(), byte: u8, cut: bool) {
        strict(&hello(), at, byte, cut);
        strict(&request(Claim::Grant(vec![1; 150])), at, byte, cut);
        strict(&request(Claim::Renewal(hello().certificate)), at, byte, cut);
        strict(&JoinAnswer::Welcome(welcome().into()), at, byte, cut);
        strict(&JoinAnswer::refused(Refusal::Spent, "used"), at, byte, cut);
    }
}

#[test]
fn first_words_survive_and_a_part_of_them_is_none() {
    fn whole<T: Format + PartialEq + Debug>(value: T) {
        survives(&value);
        let bytes = encode(&value);
        for len in 0..bytes.len() {
            assert!(decode::<T>(&bytes[..len]).is_err(), "{len} of {} bytes of {}", bytes.len(), T::WHAT);
        }
        let more = [&bytes[..], &[0]].concat();
        assert!(decode::<T>(&more).is_err(), "{} with a byte after it", T::WHAT);
    }
    whole(hello());
    whole(request(Claim::Grant(vec![1; 150])));
    whole(request(Claim::Renewal(hello().certificate)));
    whole(JoinAnswer::Welcome(welcome().into()));
    whole(JoinAnswer::refused(Refusal::Spent, "used"));
    let long = "ä".repeat(REASON_LEN_MAX);
    whole(JoinAnswer::refused(Refusal::Unable, &long));
}

#[test]
fn limits_of_first_words_hold() {
    fn limit<T: Format + Debug>(value: T) -> &'static str {
        match decode::<T>(&encode(&value)) {
            Err(FormatError::Limit { field, .. }) => field,
            Err(FormatError::TooLong { .. }) => "length",
            other => panic!("{other:?}"),
        }
    }
    let welcome_with = |change: fn(&mut Welcome)| {
        let mut welcome = welcome();
        change(&mut welcome);
        limit(JoinAnswer::Welcome(welcome.into()))
    };
    assert_eq!(limit(Hello { extensions: [(1, vec![0; 257])].into(), ..hello() }), "extensions");
    assert_eq!(limit(Hello { extensions: (0..17).map(|n| (n, vec![])).collect(), ..hello() }), "extensions");
    assert_eq!(limit(request(Claim::Grant(vec![0; 193]))), "grant");
    assert_eq!(limit(request(Claim::Grant(vec![0; 9_000]))), "length");
    assert_eq!(limit(JoinRequest { name: "a b".into(), ..request(Claim::Grant(vec![])) }), "name");
    assert_eq!(limit(JoinRequest { name: "\u{1b}[2J".into(), ..request(Claim::Grant(vec![])) }), "name");
    assert_eq!(welcome_with(|w| w.signing_keys = vec![String::new(); 5]), "signing keys");
    assert_eq!(welcome_with(|w| w.signing_keys[0] = "a".repeat(513)), "signing keys");
    assert_eq!(welcome_with(|w| w.contacts = vec![w.contacts[0].clone(); 9]), "contacts");
    assert_eq!(welcome_with(|w| w.certificate.term.roles = Roles::STORE), "mesh key", "only who lets others in has it");
    assert_eq!(welcome_with(|w| w.certificate.term.expires_s = 0), "the time in which it holds");
    let reason = JoinAnswer::Refused { refusal: Refusal::Unable, reason: "a".repeat(513) };
    assert_eq!(limit(reason), "reason");
    let mut full = welcome();
    full.signing_keys = vec!["a".repeat(SIGNING_KEY_LEN_MAX); SIGNING_KEYS_MAX];
    let addresses = (0..8u16).map(|n| (std::net::Ipv6Addr::from([0xffff - n; 8]), 0xffff).into()).collect();
    full.contacts = vec![Contact { node: public(2), addresses }; 8];
    survives(&JoinAnswer::Welcome(full.into()));
    survives(&Hello { extensions: (0xfff0..=0xffff).map(|n| (n, vec![255; 256])).collect(), ..hello() });
}

/// Logs and errors show these.
#[test]
fn first_words_show_no_secret() {
    let shown = format!("{:?} {:?}", request(Claim::Grant(vec![171; 150])), JoinAnswer::Welcome(welcome().into()));
    assert!(!shown.contains("171") && !shown.contains(&key(5).to_secret_text()) && !shown.contains("7, 7"), "{shown}");
}
