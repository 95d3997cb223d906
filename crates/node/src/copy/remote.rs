//! The node that is copied to or from, over HTTP. What may work later is tried again a few times: everything that is
//! asked can be asked twice.

use std::io::{self, Read};
use std::thread;
use std::time::{Duration, Instant};

use shoal_wire::mesh::manifest::ChunkRef;
use shoal_wire::mesh::transfer::{
    ChunkBatch, ChunkQuery, ChunkRequest, Commit, Entry, Lacking, MESSAGE_LEN_MAX, Message, PATHS_MAX, PathQuery,
    TransferError,
};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use thiserror::Error;
use ureq::Agent;

use crate::upstream::{Authorities, Patience, agent};

/// A commit is answered when all its NARs were hashed, and a path when the node has fetched it.
const PATIENCE: Patience = Patience {
    ask: Duration::from_secs(600),
    connect: Duration::from_secs(15),
    first_byte: Duration::from_secs(600),
    stall: Duration::from_secs(60),
};
/// Attempts at one request, three seconds of waiting between them all: long enough for a node that is started again.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Between looks at a commit that goes on without the connection that it was asked by.
const COMMIT_PAUSE: Duration = Duration::from_secs(2);
/// An error's text for people.
const ERROR_TEXT_MAX: usize = 4096;

/// Why the node did not do what it was asked.
#[derive(Debug, Error)]
pub enum RemoteError {
    #[error("cannot reach {url}: {text}")]
    Unreachable { url: String, text: String },
    /// Who asks is not known, or may not.
    #[error("{url} refuses ({status}): {text}{hint}", hint = token_hint(*.status))]
    Refused { url: String, status: u16, text: String },
    /// Who asks may not do that here, whatever it is about: what a token is good for can be changed.
    #[error("{url} refuses (403): {text}")]
    Forbidden { url: String, text: String },
    /// Something that should be there is not, or not any more.
    #[error("{url}: {text}")]
    Conflict { url: String, text: String },
    #[error("{url} fails ({status}): {text}")]
    Failed { url: String, status: u16, text: String },
    #[error("{url} does not answer as a shoal node does: {text}")]
    Alien { url: String, text: String },
}

impl RemoteError {
    /// The one that a cause is, or holds.
    pub fn within<'a>(cause: &'a (dyn std::error::Error + 'static)) -> Option<&'a RemoteError> {
        let inner = || cause.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<RemoteError>();
        cause.downcast_ref::<RemoteError>().or_else(inner)
    }
}

fn token_hint(status: u16) -> &'static str {
    match status {
        401 => "; name a file with a token by --token-file",
        _ => "",
    }
}

/// Where nothing is claimed of a path, a refusal cannot be about one.
fn of_nobody(error: RemoteError) -> RemoteError {
    match error {
        RemoteError::Refused { url, status: 403, text } => RemoteError::Forbidden { url, text },
        error => error,
    }
}

type Answer<T> = Result<T, RemoteError>;

/// A node, and who asks it.
pub struct Remote {
    agent: Agent,
    base: String,
    authorization: Option<String>,
}

impl Remote {
    /// `authorization`: the header of that name.
    pub fn new(url: &str, authorization: Option<String>, authorities: &Authorities) -> Remote {
        let base = url.trim_end_matches('/').to_owned();
        Remote { agent: agent(authorities, PATIENCE), base, authorization }
    }

    pub fn url(&self) -> &str {
        &self.base
    }

    /// An error unless the node's store has the same directory.
    pub fn check_store_dir(&self, dir: &StoreDir) -> Answer<()> {
        let answer = self.get("nix-cache-info")?.ok_or_else(|| self.alien("nix-cache-info", "it has none"))?;
        let text = String::from_utf8_lossy(&answer);
        match text.lines().find_map(|line| line.strip_prefix("StoreDir:")).map(str::trim) {
            Some(found) if found == dir.as_str() => Ok(()),
            found => Err(self.alien("nix-cache-info", format!("its store is {found:?}, here it is {dir}"))),
        }
    }

    /// Of each path whether the node does not have it.
    pub fn lacks_paths(&self, paths: &[StorePath]) -> Answer<Vec<bool>> {
        let mut lacking = Vec::with_capacity(paths.len());
        for part in paths.chunks(PATHS_MAX) {
            lacking.extend(self.lacking("api/v1/push/paths", &PathQuery(part.to_vec()), part.len())?);
        }
        Ok(lacking)
    }

    /// Of each chunk whether it has to be brought for this upload.
    pub fn lacks_chunks(&self, upload: &str, hashes: Vec<[u8; 32]>) -> Answer<Vec<bool>> {
        let count = hashes.len();
        self.lacking(&format!("api/v1/push/{upload}/lacking"), &ChunkQuery(hashes), count)
    }

    fn lacking(&self, at: &str, query: &impl Message, count: usize) -> Answer<Vec<bool>> {
        let answer = self.post(at, &query.encode()).map_err(of_nobody)?;
        match Lacking::decode(&answer) {
            Ok(Lacking(lacking)) if lacking.len() == count => Ok(lacking),
            Ok(Lacking(lacking)) => Err(self.alien(at, format!("{} answers to {count} questions", lacking.len()))),
            Err(error) => Err(self.alien(at, error)),
        }
    }

    pub fn put_chunks(&self, upload: &str, batch: ChunkBatch) -> Answer<()> {
        self.post(&format!("api/v1/push/{upload}/chunks"), &batch.encode()).map(|_| ()).map_err(of_nobody)
    }

    /// Makes paths valid there. [`RemoteError::Conflict`]: chunks have to be asked about and brought again.
    pub fn commit(&self, upload: &str, commit: &Commit) -> Answer<()> {
        let (at, body) = (format!("api/v1/push/{upload}/commit"), commit.encode());
        let until = Instant::now() + PATIENCE.first_byte;
        loop {
            match self.post(&at, &body) {
                // An attempt whose connection broke goes on there, and is busy until its end.
                Err(RemoteError::Failed { status: 503, .. }) if Instant::now() < until => thread::sleep(COMMIT_PAUSE),
                outcome => return outcome.map(|_| ()),
            }
        }
    }

    /// What the path with this hash part is made of; `None` where the node has no such path.
    pub fn entry(&self, hash_part: &str) -> Answer<Option<Entry>> {
        let at = format!("api/v1/pull/{hash_part}");
        let Some(answer) = self.get(&at)? else { return Ok(None) };
        match Entry::decode(&answer) {
            Ok(entry) if entry.info.path.hash_part() == hash_part => Ok(Some(entry)),
            Ok(entry) => Err(self.alien(&at, format!("it tells of {}", entry.info.path))),
            Err(error) => Err(self.alien(&at, error)),
        }
    }

    /// Chunks of a path by their numbers, as a batch to be decoded. `None` where the path is not there any more.
    pub fn chunks(&self, hash_part: &str, numbers: Vec<u32>) -> Answer<Option<Vec<u8>>> {
        self.again(&format!("api/v1/pull/{hash_part}/chunks"), Some(&ChunkRequest(numbers).encode()))
    }

    /// The chunks of a batch, which must be the first of those that were asked for.
    pub fn decoded<'a>(&self, batch: &'a [u8], asked: &[ChunkRef]) -> Answer<Vec<(ChunkRef, &'a [u8])>> {
        let alien = |error: TransferError| self.alien("api/v1/pull", error);
        let chunks = ChunkBatch::decode(batch).map_err(alien)?;
        let fits = chunks.len() <= asked.len() && chunks.iter().zip(asked).all(|((chunk, _), asked)| chunk == asked);
        match fits && (asked.is_empty() || !chunks.is_empty()) {
            true => Ok(chunks),
            false => Err(self.alien("api/v1/pull", "it sends other chunks than were asked for")),
        }
    }

    fn post(&self, at: &str, body: &[u8]) -> Answer<Vec<u8>> {
        self.again(at, Some(body))?.ok_or_else(|| self.alien(at, "404 not found; is it too old?"))
    }

    fn get(&self, at: &str) -> Answer<Option<Vec<u8>>> {
        self.again(at, None)
    }

    fn alien(&self, at: &str, error: impl ToString) -> RemoteError {
        RemoteError::Alien { url: format!("{}/{at}", self.base), text: error.to_string() }
    }

    fn again(&self, at: &str, body: Option<&[u8]>) -> Answer<Option<Vec<u8>>> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..ATTEMPTS {
            match self.ask(at, body) {
                Err(RemoteError::Unreachable { .. }) => {}
                // A full disk does not go away in a moment.
                Err(RemoteError::Failed { status, .. }) if status != 507 => {}
                outcome => return outcome,
            }
            thread::sleep(pause);
            pause *= 2;
        }
        self.ask(at, body)
    }

    fn ask(&self, at: &str, body: Option<&[u8]>) -> Answer<Option<Vec<u8>>> {
        let url = format!("{}/{at}", self.base);
        let unreachable = |error: &dyn std::fmt::Display| {
            Err(RemoteError::Unreachable { url: self.base.clone(), text: error.to_string() })
        };
        let token = self.authorization.iter().map(|authorization| ("Authorization", authorization.as_str()));
        let sent = match body {
            Some(body) => {
                token.fold(self.agent.post(&url), |request, (name, value)| request.header(name, value)).send(body)
            }
            None => token.fold(self.agent.get(&url), |request, (name, value)| request.header(name, value)).call(),
        };
        let response = match sent {
            Ok(response) => response,
            Err(error) => return unreachable(&error),
        };
        let status = response.status().as_u16();
        let limit = if status == 200 { MESSAGE_LEN_MAX } else { ERROR_TEXT_MAX };
        let mut answer = Vec::new();
        let read = response.into_body().into_reader().take(limit as u64 + 1).read_to_end(&mut answer);
        if let Err(error) = read {
            return unreachable(&error);
        }
        let text = || String::from_utf8_lossy(&answer[..answer.len().min(ERROR_TEXT_MAX)]).trim().to_owned();
        match status {
            200 if answer.len() > limit => Err(self.alien(at, format!("an answer of more than {limit} bytes"))),
            200 => Ok(Some(answer)),
            404 => Ok(None),
            409 => Err(RemoteError::Conflict { text: text(), url }),
            408 | 429 | 500.. => Err(RemoteError::Failed { text: text(), url, status }),
            _ => Err(RemoteError::Refused { text: text(), url, status }),
        }
    }
}

/// For readers and writers in between, which know only errors of their own kind.
impl From<RemoteError> for io::Error {
    fn from(error: RemoteError) -> Self {
        io::Error::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::tests::answering;
    use shoal_wire::nix::path_info::PathInfo;

    fn remote(answers: Vec<(u16, Vec<u8>)>) -> Remote {
        Remote::new(&answering(answers), None, &Authorities::default())
    }

    fn path(letter: char) -> StorePath {
        StorePath::from_base_name(&format!("{}-{letter}", letter.to_string().repeat(32))).unwrap()
    }

    fn is_alien<T>(answer: Answer<T>, why: &str) -> bool {
        matches!(answer, Err(RemoteError::Alien { text, .. }) if text.contains(why))
    }

    #[test]
    fn what_no_node_answers_is_an_error_and_not_believed_in_part() {
        let ask = |answer: Vec<u8>| remote(vec![(200, answer)]).lacks_chunks("u", vec![[0; 32]; 2]);
        assert_eq!(ask(Lacking(vec![true, false]).encode()).unwrap(), [true, false]);
        assert!(is_alien(ask(Lacking(vec![true]).encode()), "1 answers to 2 questions"));
        assert!(is_alien(ask(Lacking(vec![true; 3]).encode()), "3 answers to 2 questions"));
        assert!(is_alien(ask(b"<html>".to_vec()), ""));
        assert!(is_alien(ask(vec![1; MESSAGE_LEN_MAX + 1]), "more than"), "an answer that is too long was cut short");
        let info = PathInfo::new(path('a'), [0; 32], 0);
        let entry = Entry { info, chunks: Vec::new() }.encode();
        assert!(remote(vec![(200, entry.clone())]).entry(path('a').hash_part()).is_ok_and(|entry| entry.is_some()));
        assert!(is_alien(remote(vec![(200, entry)]).entry(path('b').hash_part()), "it tells of"));
        let other_store = || remote(vec![(200, b"StoreDir: /other\n".to_vec())]).check_store_dir(&StoreDir::default());
        assert!(is_alien(other_store(), "/other"));
    }

    #[test]
    fn chunks_are_the_first_of_those_asked_for() {
        let [one, two] = [b"one", b"two"].map(|bytes| ChunkRef::of(bytes));
        let batch = |chunks: &[ChunkRef]| {
            let mut batch = ChunkBatch::default();
            chunks.iter().for_each(|chunk| batch.push(chunk, b"frame"));
            batch.encode()
        };
        let remote = remote(Vec::new());
        let asked = [one, two];
        assert_eq!(remote.decoded(&batch(&asked), &asked).unwrap().len(), 2);
        assert_eq!(remote.decoded(&batch(&[one]), &asked).unwrap().len(), 1);
        for wrong in [&[][..], &[two], &[one, one], &[one, two, two]] {
            assert!(is_alien(remote.decoded(&batch(wrong), &asked), "other chunks"), "{wrong:?}");
        }
    }

    /// One that goes on there without its connection, for longer than anything else is tried.
    #[test]
    fn a_commit_that_goes_on_is_waited_for() {
        let busy = (0..ATTEMPTS).map(|_| (503, b"this upload is being committed".to_vec()));
        remote(busy.chain([(200, Vec::new())]).collect()).commit("u", &Commit(Vec::new())).unwrap();
    }

    #[test]
    fn what_may_work_later_is_tried_again_and_the_rest_is_not() {
        let ok = Lacking(vec![true]).encode();
        let ask = |answers| remote(answers).lacks_chunks("u", vec![[0; 32]]);
        assert_eq!(ask(vec![(503, Vec::new()), (500, Vec::new()), (200, ok.clone())]).unwrap(), [true]);
        let refused = ask(vec![(403, b"no".to_vec()), (200, ok.clone())]);
        assert!(matches!(refused, Err(RemoteError::Forbidden { .. })));
        let refused = remote(vec![(403, b"unsigned".to_vec())]).commit("u", &Commit(Vec::new()));
        assert!(matches!(refused, Err(RemoteError::Refused { status: 403, .. })));
        let full = ask(vec![(507, b"full".to_vec()), (200, ok)]);
        assert!(matches!(full, Err(RemoteError::Failed { status: 507, .. })));
    }
}
