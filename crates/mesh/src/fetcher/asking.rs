//! Questions that one peer answers at once: records, manifests, realisations, logs.

use super::{AskError, Fetcher};
use crate::dial::Dial;
use iroh::endpoint::{ReadError, ReadExactError, RecvStream, SendStream, VarInt};
use shoal_wire::mesh::NodeKey;
use shoal_wire::mesh::chunks::{Ask, PART_LEN, Part, PartLimits, RECORDS_MAX, RealisationKey};
use shoal_wire::mesh::format::encode;
use shoal_wire::mesh::path_record::{PathKey, PathRecord};
use shoal_wire::mesh::sealed::Sealed;
use shoal_wire::nix::realisation::{BuildTrace, Realisation, UnkeyedRealisation};
use shoal_wire::nix::store_path::StorePath;
use std::time::Duration;
use tokio::time::timeout;

/// How long opening a connection and a stream may take. Dialling has limits of its own; this one is for all of it.
const OPEN_TIME: Duration = Duration::from_secs(10);
/// How long a peer may send nothing.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Memory is taken for so many bytes at a time, as they come.
const PIECE_LEN: usize = 256 << 10;

/// A realisation in the form it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Realised {
    Output(Realisation),
    Trace(BuildTrace),
}

impl Fetcher {
    /// The records that `from` makes of these paths, in their order; `None` where it does not have one. Each is signed by
    /// `from` and has the key that was asked for.
    pub async fn records(&self, keys: &[PathKey], from: NodeKey) -> Result<Vec<Option<Sealed<PathRecord>>>, AskError> {
        let mut records = Vec::with_capacity(keys.len());
        for keys in keys.chunks(RECORDS_MAX) {
            let parts = ask_whole(&*self.0.dial, from, &Ask::Records(keys.to_vec())).await?;
            for (key, part) in keys.iter().zip(parts) {
                let record = part.map(|bytes| Sealed::<PathRecord>::open(&bytes)).transpose();
                let record = record.map_err(|error| AskError::Lied(error.to_string()))?;
                if record.as_ref().is_some_and(|record| record.key() != *key || record.author != from) {
                    return Err(AskError::Lied("a record is of another path, or of another author".into()));
                }
                records.push(record);
            }
        }
        Ok(records)
    }

    /// What outputs came out as, as far as `from` knows; whether it may be believed is for the caller to see.
    pub async fn realisations(
        &self,
        keys: &[RealisationKey],
        from: NodeKey,
    ) -> Result<Vec<Option<Realised>>, AskError> {
        let parts = ask_whole(&*self.0.dial, from, &Ask::Realisations(keys.to_vec())).await?;
        keys.iter().zip(parts).map(|(key, json)| json.map(|json| realised(key, &json)).transpose()).collect()
    }

    /// The build log of a derivation, as one zstd stream.
    pub async fn log(&self, drv: &StorePath, from: NodeKey) -> Result<Option<Vec<u8>>, AskError> {
        let parts = ask_whole(&*self.0.dial, from, &Ask::Log(drv.clone())).await?;
        Ok(parts.into_iter().next().flatten())
    }
}

fn realised(key: &RealisationKey, json: &[u8]) -> Result<Realised, AskError> {
    let lied = |why: String| AskError::Lied(why);
    match key {
        RealisationKey::Output(id) => {
            let found = Realisation::from_json(json).map_err(|error| lied(error.to_string()))?;
            match found.id == *id {
                true => Ok(Realised::Output(found)),
                false => Err(lied("a realisation is of another output".into())),
            }
        }
        RealisationKey::Trace(key) => {
            let value = UnkeyedRealisation::from_json(json).map_err(|error| lied(error.to_string()))?;
            Ok(Realised::Trace(BuildTrace { key: key.clone(), value }))
        }
    }
}

/// The code of a question that was not said to its end.
const GIVEN_UP: VarInt = VarInt::from_u32(2);

/// Where a question is said. One that is given up midway must not look like a whole one, which it does when its stream is
/// only dropped.
struct Question {
    send: SendStream,
    is_said: bool,
}

impl Drop for Question {
    fn drop(&mut self) {
        if !self.is_said {
            // The connection may be gone.
            let _ = self.send.reset(GIVEN_UP);
        }
    }
}

/// Opens a stream, asks, and gives the side that is answered on.
pub async fn ask(dial: &dyn Dial, peer: NodeKey, ask: &Ask) -> Result<RecvStream, AskError> {
    let open = async {
        let connection = dial.chunks(peer).await?;
        let broke = |error: String| AskError::Broke(error);
        let (send, receive) = connection.open_bi().await.map_err(|error| broke(error.to_string()))?;
        let mut question = Question { send, is_said: false };
        question.send.write_all(&encode(ask)).await.map_err(|error| broke(error.to_string()))?;
        question.is_said = true;
        question.send.finish().map_err(|error| broke(error.to_string()))?;
        Ok(receive)
    };
    timeout(OPEN_TIME, open).await.map_err(|_| AskError::Silent)?
}

/// Asks, and reads each part whole.
pub async fn ask_whole(dial: &dyn Dial, peer: NodeKey, question: &Ask) -> Result<Vec<Option<Vec<u8>>>, AskError> {
    let limits = question.limits();
    let mut stream = ask(dial, peer, question).await?;
    let mut parts = Vec::with_capacity(question.parts());
    for _ in 0..question.parts() {
        parts.push(match read_part(&mut stream, limits).await? {
            Part::Absent => None,
            Part::Busy => return Err(AskError::Busy),
            Part::Here { bytes, .. } => Some(read_bytes(&mut stream, bytes as usize).await?),
        });
    }
    Ok(parts)
}

async fn read_part(stream: &mut RecvStream, limits: PartLimits) -> Result<Part, AskError> {
    let mut head = [0; PART_LEN];
    let read = timeout(SILENCE_MAX, stream.read_exact(&mut head)).await.map_err(|_| AskError::Silent)?;
    read.map_err(broke)?;
    Part::decode(&head, limits).map_err(|error| AskError::Lied(error.to_string()))
}

async fn read_bytes(stream: &mut RecvStream, len: usize) -> Result<Vec<u8>, AskError> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        let at = bytes.len();
        bytes.resize(at + (len - at).min(PIECE_LEN), 0);
        let read = timeout(SILENCE_MAX, stream.read_exact(&mut bytes[at..])).await.map_err(|_| AskError::Silent)?;
        read.map_err(broke)?;
    }
    Ok(bytes)
}

/// What a stream that ends or breaks means: who serves ends none early.
pub fn broke(error: ReadExactError) -> AskError {
    match error {
        ReadExactError::FinishedEarly(_) => AskError::Broke("the answer is cut short".into()),
        ReadExactError::ReadError(error) => read_broke(error),
    }
}

pub fn read_broke(error: ReadError) -> AskError {
    AskError::Broke(error.to_string())
}
