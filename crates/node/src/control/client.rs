//! A command's side of the control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::{LINE_BYTES_MAX, Reply, Request};
use crate::cli::{Exit, Failure};

/// Asks the node of `data_dir` and hands each item to `on_item` as it comes.
pub fn ask(data_dir: &Path, request: &Request, mut on_item: impl FnMut(Value) -> Result<()>) -> Result<()> {
    let path = super::socket(data_dir);
    let mut stream = UnixStream::connect(&path).map_err(|error| {
        Failure::new(
            Exit::Unreachable,
            format!(
                "no node reachable at {} ({error})\nstart one with `shoal serve --data-dir {}`, or name a running one with --data-dir",
                path.display(),
                data_dir.display()
            ),
        )
    })?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).context("cannot ask the node")?;
    let mut reader = BufReader::new(stream);
    loop {
        match next(&mut reader)? {
            Reply::Item(item) => on_item(item)?,
            Reply::End => return Ok(()),
            Reply::Error(message) => return Err(anyhow!(message)),
            Reply::Busy(message) => return Err(Failure::new(Exit::TryAgain, message).into()),
        }
    }
}

/// The single item of a request that has one.
pub fn ask_one(data_dir: &Path, request: &Request) -> Result<Value> {
    let mut found = None;
    ask(data_dir, request, |item| {
        found = Some(item);
        Ok(())
    })?;
    found.context("the node gave no answer")
}

fn next(reader: &mut impl BufRead) -> Result<Reply> {
    let mut line = Vec::new();
    reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line).context("the node hung up")?;
    if line.last() != Some(&b'\n') {
        bail!("the node stopped before it had answered");
    }
    serde_json::from_slice(&line).context("the node's answer is of another version of shoal")
}
