//! The chunk store on disk.
//!
//! A NAR that comes in ([`Store::ingest`]) is cut into chunks ([`chunker`]), each named by its BLAKE3 and kept once, as
//! a zstd frame in an append-only segment. Its manifest lists them. [`Store::commit`] makes the bytes
//! durable and then the path visible, with everything that is known of it, in one transaction of the
//! index. [`Store::export`] gives the NAR back, every byte verified. Nothing here knows of Nix's
//! protocols or of other nodes.

mod arrivals;
mod assemble;
mod chunk_hold;
mod chunk_source;
pub mod chunker;
mod chunks;
mod commit;
mod cut;
mod damage;
mod error;
mod export;
mod files;
mod frame;
mod frame_lists;
mod frames;
mod gc;
mod hashing;
mod index;
mod ingest;
mod kept;
mod lately;
mod leases;
mod logs;
mod loose_frames;
mod lore;
mod manifests;
mod open;
mod options;
mod paths;
mod pins;
mod place;
mod read_ahead;
mod realisations;
mod roots;
mod segment;
mod stats;
mod store;
mod unpack;
mod usage;
mod uses;
mod verify;
mod watcher;

pub use arrivals::{ARRIVALS_LEN_MAX, Arrivals, Verified};
pub use assemble::{AssembleError, ManifestRefused, ReceivedManifest};
pub use chunk_hold::{ChunkError, ChunkHold};
pub use chunk_source::{ChunkSource, HeldChunks};
pub use cut::NarCutter;
pub use error::{CommitError, Damage, Defect, Error, GcError, IngestError, Object, OpenError, Result};
pub use export::Export;
pub use frame::{Decoder, Effort, Encoder, FrameError};
pub use frames::{Run, StoredFrames};
pub use gc::{Compacted, GcAction, GcReport, GcRequest};
pub use index::path_record::PathRecord;
pub use ingest::{Ingest, Ingested};
pub use kept::{PIN_NAME_LEN_MAX, Pin};
pub use lately::{Lately, State};
pub use leases::TempRoots;
pub use logs::{Log, LogWriter};
pub use loose_frames::{FrameBytes, FramesRead, LooseFrames};
pub use lore::Lore;
pub use options::Options;
pub use place::{Place, SegmentId};
pub use roots::Root;
pub use stats::Stats;
pub use store::Store;
pub use usage::Usage;
pub use verify::{Pace, VerifyProgress, VerifyReport};
pub use watcher::Watcher;
