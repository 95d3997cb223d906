//! The numbers of membership, with the arithmetic that they come from. Times in milliseconds, sizes in bytes.
//!
//! A mesh of 1,000 is what they are cut for: at most 20 KB/s sent by a node, a death known everywhere within 10 s.
//! A death takes [`PROBE_MS`] + [`SILENCE_MS`] until its monitors say so, about 2 s until everybody has heard it (each
//! [`TICK_MS`] makes one that knows into three: seven ticks for 1,000, as many again for the last ones), and
//! [`GRACE_MS`] in which the suspect may contradict: 9 s.

/// How often a node does something by itself. The transport calls `tick` this often.
pub const TICK_MS: u64 = 200;
/// A gap between two ticks after which this node must have been stopped, and blames nobody for the silence.
pub const PAUSE_MS: u64 = 1_000;

/// Nodes that probe one member: two of them must agree, and one may be gone.
pub const MONITORS: usize = 3;
/// Most members that one node probes: its own three, and those that are suspected among them when many die at once.
pub const MONITORED_MAX: usize = 16;
/// From one answered probe to the next. Three probes and three answers of 130 bytes a second are 0.8 KB/s.
pub const PROBE_MS: u64 = 1_000;
/// From an unanswered probe to its repetition.
pub const PROBE_RETRY_MS: u64 = 400;
/// Silence after a first unanswered probe that makes a suspicion: eight tries, of which at 5 % loss each way all fail
/// once in 10^8.
pub const SILENCE_MS: u64 = 3_000;
/// Probes that must have gone unanswered, so that a node that was not running is no judge.
pub const SILENCE_PROBES: u32 = 6;
/// Authors of suspicions that make a death, where there are as many to ask: one broken link, or one liar, kills nobody.
pub const QUORUM: usize = 2;
/// Suspicions that are kept against one member.
pub const SUSPICIONS_MAX: usize = 3;
/// From the quorum to the death, as each node counts it.
pub const GRACE_MS: u64 = 3_000;
/// A single suspicion that is contradicted by nobody for as long is a death too: the other monitors may be gone.
pub const LONE_GRACE_MS: u64 = 30_000;
/// A member that contradicted this node is not suspected by it again for so long, twice as long each time.
pub const FORGIVEN_MS: u64 = 5_000;
pub const FORGIVEN_MS_MAX: u64 = 300_000;
/// A node contradicts at most this often.
pub const REFUTE_MS: u64 = 400;

/// How long a death is told to those that have not heard of it.
pub const DEATH_SHARED_MS: u64 = 3_600_000;
/// How long records of the dead are kept, so that old ones do not bring them back: longer than partitions last.
pub const TOMBSTONE_MS: u64 = 7 * 24 * 3_600_000;
/// Most members, dead ones included: 16 times the mesh that the budget is cut for, 8 MiB of records.
pub const MEMBERS_MAX: usize = 16_384;
/// Most revocations.
pub const REVOCATIONS_MAX: usize = 4_096;
/// Nodes that are asked beside the members: a headless service names all its pods.
pub const CONTACTS_MAX: usize = 64;
/// Certificates and tombstones are looked at this often.
pub const SWEEP_MS: u64 = 10_000;

/// Members that a node chooses to tell news to and to compare views with, and as many at most that chose it: an urgent
/// fact, of which each makes some nine copies, misses one in some thousands, and a connection to each costs 100 B/s.
pub const PARTNERS: usize = 8;
/// One of them is replaced this often: a handshake, which costs 5 KB, and all of them within three minutes.
pub const PARTNER_MS: u64 = 20_000;
/// How long one that spoke as a partner counts as one: far longer than partners are silent, which exchange views in turn.
pub const CALLER_MS: u64 = 60_000;

/// Partners that a fact is pushed to in one tick.
pub const FANOUT: usize = 2;
/// Facts that wait to be pushed; anti-entropy carries what does not fit.
pub const RUMORS_MAX: usize = 2_048;
/// Copies of a fact that is not urgent: they reach 80 % of all, anti-entropy the others.
pub const COPIES: u32 = 2;
/// Bytes of pushed facts in one frame, which with its head fits into a datagram.
pub const PUSH_LEN_MAX: usize = 1_100;

/// From one anti-entropy exchange to the next: 1.1 KB of bucket hashes and 2 KB of digests at 1,000 nodes, where a
/// full list of digests were 15 KB.
pub const SYNC_MS: u64 = 1_000;
/// Longest wait for an answer while the last one was cut short: a newcomer has 400 KB to fetch, one answer from each of
/// thirty.
pub const SYNC_CATCH_UP_MS: u64 = 400;
/// One in so many exchanges is with a dead member or a contact, so that halves of a mesh find each other again.
pub const SYNC_ASTRAY: u64 = 8;
/// Members a bucket is meant for.
pub const BUCKET_MEMBERS: usize = 4;
/// Bytes of the answer to one request.
pub const SYNC_LEN_MAX: usize = 15 << 10;

/// A node publishes changes of its load at most this often for each member of the mesh: at 1,000 members each 100 s,
/// so that 10 records of 350 bytes a second reach everybody, at 7 KB/s with copies.
pub const REFRESH_MS_A_MEMBER: u64 = 100;
/// The same at least, in a small mesh.
pub const REFRESH_MS_MIN: u64 = 5_000;
/// Changes that matter at once (addresses, presence, roles) are published at most this often.
pub const PUBLISH_MS_MIN: u64 = 1_000;

/// Bytes a second that a node sends, heads of packets included.
pub const BUDGET_BYTES_A_S: u64 = 20_000;
/// What it may save up: two seconds.
pub const BUDGET_BURST: u64 = 2 * BUDGET_BYTES_A_S;
/// Heads of one packet: IPv6 and UDP 48, QUIC and its tag about 40.
pub const PACKET_OVERHEAD: usize = 90;

/// Bytes from one peer within [`FLOOD_MS`] that no peer within its budget sends: twice the burst and the rate.
pub const FLOOD_BYTES: u64 = 2 * (BUDGET_BURST + FLOOD_MS / 1_000 * BUDGET_BYTES_A_S);
pub const FLOOD_MS: u64 = 10_000;
/// Peers whose conduct is remembered.
pub const CONDUCTS_MAX: usize = 4_096;
