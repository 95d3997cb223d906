//! What a server says between a request and its reply.

use crate::nix::log::{ActivityResult, ActivityType, Field, ResultType, StartActivity};
use crate::nix::proto::{Codec, ProtoError, Reader, TOKEN_LEN_MAX, Writer};
use std::io::{self, Read, Write};
use thiserror::Error;

const NEXT: u64 = 0x6f6c_6d67;
const READ: u64 = 0x6461_7461;
const WRITE: u64 = 0x6461_7416;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

/// One message. [`StderrMessage::Last`] and [`StderrMessage::Error`] end the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StderrMessage {
    /// A line for the user, with its newline.
    Next(Vec<u8>),
    /// Asks an old client for data. Never sent to clients from 1.23 on.
    Read(u64),
    /// Data for an old client. Never sent any more.
    Write(Vec<u8>),
    /// The reply follows.
    Last,
    /// The request failed; no reply follows.
    Error(RemoteError),
    StartActivity(StartActivity),
    StopActivity {
        id: u64,
    },
    Result(ActivityResult),
}

/// A failure as the client shows it. Carried without positions in source files, which no request has.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", String::from_utf8_lossy(.msg))]
pub struct RemoteError {
    /// The number of a [`crate::nix::log::Verbosity`].
    pub level: u64,
    /// Without `error: `; may have colours and newlines.
    pub msg: Vec<u8>,
    /// Outermost first.
    pub traces: Vec<Vec<u8>>,
}

impl RemoteError {
    pub fn new(msg: impl Into<Vec<u8>>) -> Self {
        RemoteError { level: 0, msg: msg.into(), traces: Vec::new() }
    }
}

impl Codec for RemoteError {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.token("error type", |kind, _| match kind {
            "Error" => Ok(()),
            other => Err(other.to_owned()),
        })?;
        let level = r.get()?;
        let _name = r.bytes("error name", TOKEN_LEN_MAX)?;
        let msg = r.get()?;
        no_position(r)?;
        let mut traces = Vec::new();
        for _ in 0..r.count()? {
            no_position(r)?;
            traces.push(r.get()?);
        }
        Ok(RemoteError { level, msg, traces })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        w.string("Error")?;
        w.u64(self.level)?;
        w.string("Error")?;
        w.put(&self.msg)?;
        w.u64(0)?;
        w.u64(self.traces.len() as u64)?;
        for trace in &self.traces {
            w.u64(0)?;
            w.put(trace)?;
        }
        Ok(())
    }
}

fn no_position<R: Read>(r: &mut Reader<R>) -> Result<(), ProtoError> {
    match r.u64()? {
        0 => Ok(()),
        value => Err(ProtoError::Range { what: "absent position", value }),
    }
}

impl Codec for StderrMessage {
    /// Begins a message of its own: a stream of them has no bound.
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        r.begin();
        Ok(match r.u64()? {
            NEXT => StderrMessage::Next(r.get()?),
            READ => StderrMessage::Read(r.get()?),
            WRITE => StderrMessage::Write(r.get()?),
            LAST => StderrMessage::Last,
            ERROR => StderrMessage::Error(r.get()?),
            START_ACTIVITY => StderrMessage::StartActivity(StartActivity {
                id: r.get()?,
                level: r.get()?,
                kind: ActivityType(r.get()?),
                text: r.get()?,
                fields: r.get()?,
                parent: r.get()?,
            }),
            STOP_ACTIVITY => StderrMessage::StopActivity { id: r.get()? },
            RESULT => {
                StderrMessage::Result(ActivityResult { id: r.get()?, kind: ResultType(r.get()?), fields: r.get()? })
            }
            value => return Err(ProtoError::Range { what: "log message", value }),
        })
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match self {
            StderrMessage::Next(line) => {
                w.u64(NEXT)?;
                w.put(line)
            }
            StderrMessage::Read(len) => {
                w.u64(READ)?;
                w.u64(*len)
            }
            StderrMessage::Write(data) => {
                w.u64(WRITE)?;
                w.put(data)
            }
            StderrMessage::Last => w.u64(LAST),
            StderrMessage::Error(error) => {
                w.u64(ERROR)?;
                w.put(error)
            }
            StderrMessage::StartActivity(start) => {
                for number in [START_ACTIVITY, start.id, start.level, start.kind.0] {
                    w.u64(number)?;
                }
                w.put(&start.text)?;
                w.put(&start.fields)?;
                w.u64(start.parent)
            }
            StderrMessage::StopActivity { id } => {
                w.u64(STOP_ACTIVITY)?;
                w.u64(*id)
            }
            StderrMessage::Result(result) => {
                for number in [RESULT, result.id, result.kind.0] {
                    w.u64(number)?;
                }
                w.put(&result.fields)
            }
        }
    }
}

/// 0 and a number, or 1 and a string.
impl Codec for Field {
    fn read<R: Read>(r: &mut Reader<R>) -> Result<Self, ProtoError> {
        match r.u64()? {
            0 => Ok(Field::Number(r.get()?)),
            1 => Ok(Field::Text(r.get()?)),
            value => Err(ProtoError::Range { what: "field type", value }),
        }
    }

    fn write<W: Write>(&self, w: &mut Writer<W>) -> io::Result<()> {
        match self {
            Field::Number(number) => {
                w.u64(0)?;
                w.u64(*number)
            }
            Field::Text(text) => {
                w.u64(1)?;
                w.put(text)
            }
        }
    }
}
