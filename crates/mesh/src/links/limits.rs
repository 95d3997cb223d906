//! What links may use, and why so much.

use std::time::Duration;

/// From the first packet to a verified hello. Longer than three retransmissions on a bad link.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A dial that took longer is given up: who waits for it has other members to ask.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Dials that begin at once: each costs a millisecond or more at both ends, and a node that starts dials all others.
pub const DIALS_BEGINNING_MAX: usize = 16;
/// A dial that is not answered by then costs nothing more, and lets another begin.
pub const DIAL_TURN: Duration = Duration::from_millis(250);
/// From the first failed dial to the next; twice as long each time.
pub const BACKOFF_MIN: Duration = Duration::from_millis(500);
/// A node that comes back is found within this time, if it does not dial itself.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A frozen peer holds what waits for it so long at most.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Three of these must be lost before a link is taken for dead.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection for chunks or builds over which nothing passed for so long is closed: another one costs less than keeping it.
pub const CHUNKS_IDLE: Duration = Duration::from_secs(120);
/// The same for frames and messages: longer than partners are silent, shorter than it takes a node to look up paths at all
/// members of a large mesh. Each costs two packets of keep-alive in five seconds.
pub const SYNC_IDLE: Duration = Duration::from_secs(60);
/// How often that is looked at.
pub const SWEEP: Duration = Duration::from_secs(10);
/// How long a connection that comes in waits for the dial in the other direction that takes precedence. Shorter than
/// the other end's patience, so that a dial that leads nowhere does not spoil the one that works.
pub const HOLD_MAX: Duration = Duration::from_secs(3);
/// A connection that comes in so soon after one that took precedence is the other half of a simultaneous dial.
pub const CROSSING: Duration = Duration::from_secs(3);
/// Who is told that the connection in the other direction is kept waits so long for it. Is it not there by then, it was one
/// of this node's life before, and the other end takes the next dial.
pub const CROSSING_PAUSE: Duration = Duration::from_millis(50);
/// A peer that was cut off is not spoken to for so long, lest it costs a handshake each time.
pub const REST_AFTER_CUT: Duration = Duration::from_secs(2);
/// How long closing waits for others to hear of it.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Peers of which something is known: as many as membership keeps members.
pub const PEERS_MAX: usize = 16_384;
/// Open connections: two to each of 2,000 members.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Incoming connections whose other end is not known yet: each costs a handshake and its buffers.
pub const HANDSHAKES_MAX: usize = 128;
/// The same from one IP address, behind which there may be several nodes.
pub const HANDSHAKES_PER_ADDRESS_MAX: usize = 32;
/// Beyond so many the source address must prove that it receives what is sent to it.
pub const HANDSHAKES_UNPROVEN_MAX: usize = HANDSHAKES_MAX / 2;

/// Frames that wait for a link to be opened. Membership repeats itself each second.
pub const FRAMES_WAITING_MAX: usize = 16;
/// Frames on their way to one peer that are too long for a datagram.
pub const FRAME_STREAMS_MAX: usize = 8;
/// How long such a frame may take.
pub const FRAME_STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// Messages that wait for one peer: what a second of the busiest announcements makes.
pub const MESSAGES_QUEUED_MAX: usize = 4_096;
/// Bytes of them; two of the longest messages fit.
pub const MESSAGE_BYTES_QUEUED_MAX: usize = 16 << 20;
/// Bytes of messages that wait for all peers.
pub const MESSAGE_BYTES_QUEUED_TOTAL_MAX: usize = 256 << 20;
/// Those that wait for one connection to be opened.
pub const WAITERS_MAX: usize = 1_024;

/// Frames a second from one peer: ten times what its budget makes of the smallest ones, and what it may save up.
pub const FRAMES_A_S: u64 = 1_000;
pub const FRAMES_BURST: u64 = 4_000;
/// Bytes of frames a second from one peer, likewise.
pub const FRAME_BYTES_A_S: u64 = 256 << 10;
pub const FRAME_BYTES_BURST: u64 = 1 << 20;
/// Messages a second to one peer, and how many at once: the sender keeps to it.
pub const MESSAGES_A_S: u64 = 5_000;
pub const MESSAGES_BURST: u64 = 8_192;
/// Bytes of messages, likewise: 100,000 announcements in two bursts.
pub const MESSAGE_BYTES_A_S: u64 = 4 << 20;
pub const MESSAGE_BYTES_BURST: u64 = 16 << 20;
/// A receiver lets pass so many times what a sender keeps to, for what a bad link held up.
pub const LENIENCE: u64 = 2;

/// Streams that a peer may open on a link of frames and messages: one of messages, and frames.
pub const SYNC_STREAMS_MAX: u32 = 16;
/// Requests for chunks that a peer may have open.
pub const CHUNK_STREAMS_MAX: u32 = 64;
/// Builds that a peer may have asked for at a time: more than the slots of the largest machine.
pub const BUILD_STREAMS_MAX: u32 = 512;
/// Bytes that a peer may send before they are read, once it is known; each stream has its own limit below it.
pub const RECEIVE_WINDOW: u32 = 16 << 20;
/// The same before it is known: more than the longest hello.
pub const RECEIVE_WINDOW_OF_STRANGERS: u32 = 32 << 10;
/// Datagrams that wait to be read, or to be sent, in bytes; older ones are dropped for newer ones.
pub const DATAGRAM_BUFFER_LEN: usize = 256 << 10;
