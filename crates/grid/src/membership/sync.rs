//! Anti-entropy: what two views differ in, found by a hash a bucket before any digest is sent.

use super::Now;
use super::limits::{BUCKET_MEMBERS, SYNC_LEN_MAX};
use super::member::{Member, prefix, tells_more};
use super::view::View;
use crate::random::{Random, scramble};
use shoal_wire::mesh::frame::{BUCKETS_MAX, DIGESTS_MAX, Digest, FACTS_MAX, Fact, Frame};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a digest in a frame: 8 of the member, and numbers that stay small.
const DIGEST_LEN: usize = 8 + 2 + 4 + 5;
/// Bytes of the rest of a frame, the list of buckets included.
const HEAD_LEN: usize = 3 * BUCKETS_MAX + 32;

/// Facts that fit into some bytes.
pub struct Parcel {
    pub facts: Vec<Fact>,
    left: usize,
    pub is_cut: bool,
}

impl Parcel {
    pub fn new(room: usize) -> Self {
        Parcel { facts: Vec::new(), left: room.min(SYNC_LEN_MAX), is_cut: false }
    }

    /// All facts of a member or none, for a record without its suspicions would bring the dead back for a while.
    pub fn add(&mut self, facts: impl Iterator<Item = Fact>) {
        let facts: Vec<Fact> = facts.collect();
        let len: usize = facts.iter().map(Fact::frame_len).sum();
        if len > self.left || self.facts.len() + facts.len() > FACTS_MAX {
            self.is_cut = true;
            return;
        }
        self.left -= len;
        self.facts.extend(facts);
    }
}

fn entry_hash(digest: &Digest, salt: u64) -> u32 {
    let parts = [digest.version.incarnation, digest.version.sequence, u64::from(digest.suspicions)];
    let word = parts.iter().fold(scramble(digest.member ^ salt), |state, part| scramble(state ^ part).rotate_left(17));
    scramble(word) as u32
}

fn bucket_of(member: u64, buckets: usize) -> usize {
    (scramble(member) as usize) & (buckets - 1)
}

fn bucket_hashes(view: &View, buckets: usize, salt: u64, now_ms: u64) -> Vec<u32> {
    let (mut hashes, mut is_used) = (vec![0u32; buckets], vec![false; buckets]);
    for member in view.members().values().filter(|member| member.is_shared(now_ms)) {
        let digest = member.digest();
        let bucket = bucket_of(digest.member, buckets);
        hashes[bucket] = hashes[bucket].wrapping_add(entry_hash(&digest, salt));
        is_used[bucket] = true;
    }
    // 0 says that there is nothing.
    hashes.iter().zip(is_used).map(|(hash, is_used)| if is_used { (*hash).max(1) } else { 0 }).collect()
}

fn revocations_hash(view: &View, salt: u64) -> u32 {
    view.revocations().keys().fold(0u32, |sum, node| sum.wrapping_add(scramble(prefix(node) ^ salt) as u32))
}

/// What an exchange begins with.
pub fn request(view: &View, now: Now, random: &mut Random) -> Frame {
    let salt = random.word();
    let buckets = view.members().len().div_ceil(BUCKET_MEMBERS).next_power_of_two().min(BUCKETS_MAX);
    Frame::SyncRequest {
        salt,
        hashes: bucket_hashes(view, buckets, salt, now.ms),
        revocations: revocations_hash(view, salt),
    }
}

/// The answer to a request, in at most `room` bytes; `None` where both know the same. Where not everything fits, it
/// begins at a random bucket, so that several who are asked tell different things.
pub fn answer(
    view: &View,
    (salt, theirs, revocations): (u64, &[u32], u32),
    room: usize,
    now: Now,
    random: &mut Random,
) -> Option<Frame> {
    let buckets = theirs.len();
    let mine = bucket_hashes(view, buckets, salt, now.ms);
    let differ: Vec<bool> = mine.iter().zip(theirs).map(|(mine, theirs)| mine != theirs).collect();
    let mut parcel = Parcel::new(room.saturating_sub(HEAD_LEN));
    if revocations != revocations_hash(view, salt) {
        let all: Vec<_> = view.revocations().values().collect();
        let first = random.below(all.len() as u64) as usize;
        for revocation in all.iter().cycle().skip(first).take(all.len()) {
            parcel.add(std::iter::once(Fact::Revocation(revocation.bytes().clone())));
        }
    }
    let mut members: BTreeMap<usize, Vec<&Member>> = BTreeMap::new();
    for member in view.members().values().filter(|member| member.is_shared(now.ms)) {
        let bucket = bucket_of(prefix(&member.record.node), buckets);
        if differ[bucket] {
            members.entry(bucket).or_default().push(member);
        }
    }
    let (mut differing, mut digests) = (BTreeSet::new(), Vec::new());
    let first = random.below(buckets as u64) as usize;
    for bucket in (first..buckets).chain(0..first).filter(|bucket| differ[*bucket]) {
        let there = members.remove(&bucket).unwrap_or_default();
        if theirs[bucket] == 0 {
            there.iter().for_each(|member| parcel.add(member.facts()));
        } else if there.len() * DIGEST_LEN <= parcel.left && digests.len() + there.len() <= DIGESTS_MAX {
            parcel.left -= there.len() * DIGEST_LEN;
            differing.insert(bucket as u16);
            digests.extend(there.iter().map(|member| member.digest()));
        } else {
            parcel.is_cut = true;
        }
    }
    if differing.is_empty() && parcel.facts.is_empty() {
        return None;
    }
    let differing = differing.into_iter().collect();
    let more = parcel.is_cut;
    Some(Frame::SyncDigests { buckets: buckets as u16, differing, digests, facts: parcel.facts, more })
}

/// What to do about the digests of an answer: members to ask for, and facts that the other side lacks.
pub fn compare(
    view: &View,
    buckets: usize,
    differing: &[u16],
    digests: &[Digest],
    room: usize,
    now: Now,
) -> (Vec<u64>, Vec<Fact>) {
    let theirs: BTreeMap<u64, &Digest> = digests.iter().map(|digest| (digest.member, digest)).collect();
    let unknown = Digest { member: 0, version: Default::default(), suspicions: 0 };
    let wants = digests
        .iter()
        .filter(|theirs| view.with_prefix(theirs.member).next().is_none_or(|mine| tells_more(theirs, &mine.digest())));
    let wants = wants.map(|digest| digest.member).collect();
    let mut parcel = Parcel::new(room);
    for member in view.members().values().filter(|member| member.is_shared(now.ms)) {
        let mine = member.digest();
        let is_told = differing.binary_search(&(bucket_of(mine.member, buckets) as u16)).is_ok();
        if is_told && tells_more(&mine, theirs.get(&mine.member).copied().unwrap_or(&unknown)) {
            parcel.add(member.facts());
        }
    }
    (wants, parcel.facts)
}

/// The facts that were asked for, as far as they fit.
pub fn give(view: &View, wants: &[u64], room: usize) -> Vec<Fact> {
    let mut parcel = Parcel::new(room);
    for member in wants.iter().flat_map(|prefix| view.with_prefix(*prefix)) {
        parcel.add(member.facts());
    }
    parcel.facts
}
