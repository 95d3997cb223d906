//! What a supervisor and those who watch its build say to each other, one message each.

use std::io;

use crate::Outcome;

/// The most log in one message.
pub(crate) const PIECE_MAX: usize = 64 * 1024;

/// From those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Send the log from this byte on, and the outcome.
    Watch(u64),
    Kill,
}

const WATCH: u8 = b'w';
const KILL: u8 = b'k';

impl Request {
    pub fn encode(self) -> Vec<u8> {
        match self {
            Request::Kill => vec![KILL],
            Request::Watch(offset) => [&[WATCH], offset.to_le_bytes().as_slice()].concat(),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<Request> {
        match bytes.split_first()? {
            (&KILL, []) => Some(Request::Kill),
            (&WATCH, offset) => Some(Request::Watch(u64::from_le_bytes(offset.try_into().ok()?))),
            _ => None,
        }
    }
}

const LOG: u8 = b'l';
const OUTCOME: u8 = b'o';

/// A supervisor's message: a piece of the log.
pub(crate) fn encode_log(piece: &[u8]) -> Vec<u8> {
    [&[LOG], piece].concat()
}

/// A supervisor's last message.
pub(crate) fn encode_outcome(outcome: &Outcome) -> io::Result<Vec<u8>> {
    postcard::to_extend(outcome, vec![OUTCOME]).map_err(io::Error::other)
}

/// What a supervisor said.
#[derive(Debug)]
pub(crate) enum Report<'a> {
    Log(&'a [u8]),
    Outcome(Outcome),
}

pub(crate) fn decode_report(bytes: &[u8]) -> io::Result<Report<'_>> {
    match bytes.split_first() {
        Some((&LOG, piece)) => Ok(Report::Log(piece)),
        Some((&OUTCOME, outcome)) => decode_outcome(outcome).map(Report::Outcome),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a supervisor's message")),
    }
}

/// The content of `<scratch>/exit`, or of the last message.
pub(crate) fn decode_outcome(bytes: &[u8]) -> io::Result<Outcome> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}
