//! Requests with a framed upload: the stream is read to its end whatever comes of the request.

use shoal_wire::nix::proto::{Done, FramedReader};
use shoal_wire::nix::worker::ops::{AddBuildLog, AddMultipleToStore, AddToStore, AddToStoreNar};
use shoal_wire::nix::worker::{Reply, UploadEntries};

use super::Worker;
use super::outlet::Outlet;
use crate::door::{PipeReader, Role};
use crate::session::Client;
use crate::session::fault::Fault;
use crate::session::uploads::{NewObject, Uploader, add_object};

type Frames<'a> = FramedReader<&'a mut PipeReader>;

impl Worker {
    pub(super) fn add_to_store(&mut self, request: AddToStore) -> Result<(), Fault> {
        let AddToStore { name, method, references, repair: _ } = request;
        self.upload(|client, frames| {
            client.require(Role::Push, "add to this store")?;
            let object = NewObject { name, method, references };
            Ok(Reply::AddToStore(add_object(client, object, frames)?))
        })
    }

    pub(super) fn add_to_store_nar(&mut self, request: AddToStoreNar) -> Result<(), Fault> {
        let AddToStoreNar { mut info, repair: _, dont_check_sigs } = request;
        self.upload(|client, frames| {
            client.require(Role::Push, "add to this store")?;
            info.ultimate &= client.is_trusted();
            let mut uploader = Uploader::new(client, !dont_check_sigs);
            uploader.add(info, frames)?;
            uploader.finish()?;
            Ok(Reply::AddToStoreNar(()))
        })
    }

    pub(super) fn add_build_log(&mut self, request: &AddBuildLog) -> Result<(), Fault> {
        self.upload(|client, frames| {
            if !client.is_trusted() {
                return Err(Fault::refused("you are not privileged to add logs"));
            }
            client.store().put_log_durably(&request.drv, frames)?;
            Ok(Reply::AddBuildLog(Done))
        })
    }

    /// Takes a framed upload to its end, whatever `take` leaves of it, and replies. An error is told at once, so that
    /// the client stops sending.
    fn upload(&mut self, take: impl FnOnce(&Client, &mut Frames<'_>) -> Result<Reply, Fault>) -> Result<(), Fault> {
        let mut frames = self.input.frames();
        let result = take(&self.client, &mut frames);
        finish_upload(&mut self.outlet, frames, result)?.map_or(Ok(()), |reply| self.reply(&reply))
    }

    pub(super) fn add_multiple_to_store(&mut self, request: &AddMultipleToStore) -> Result<(), Fault> {
        let dialect = self.input.dialect().clone();
        let mut entries = UploadEntries::new(self.input.frames(), dialect)?;
        let result = take_entries(&self.client, !request.dont_check_sigs, &mut entries);
        let frames = entries.into_frames();
        let result = match result {
            // Nothing was lost but the client's own thread.
            Err(Fault::Gone) if frames.is_ended() => {
                Err(Fault::refused("the upload ended before all paths that it announced"))
            }
            Err(Fault::Fatal(text)) => Err(Fault::Refused(text)),
            result => result.map(|()| Reply::AddMultipleToStore(())),
        };
        finish_upload(&mut self.outlet, frames, result)?.map_or(Ok(()), |reply| self.reply(&reply))
    }
}

/// Tells an error, then reads the stream's end. The reply is left to be written.
fn finish_upload(
    outlet: &mut Outlet,
    mut frames: Frames<'_>,
    result: Result<Reply, Fault>,
) -> Result<Option<Reply>, Fault> {
    let reply = match result {
        Ok(reply) => Some(reply),
        Err(Fault::Refused(text)) => {
            outlet.error(&text)?;
            None
        }
        Err(fault) => return Err(fault),
    };
    frames.drain()?;
    Ok(reply)
}

fn take_entries(client: &Client, check_sigs: bool, entries: &mut UploadEntries<&mut PipeReader>) -> Result<(), Fault> {
    client.require(Role::Push, "add to this store")?;
    let mut uploader = Uploader::new(client, check_sigs);
    let taken = loop {
        match entries.next_entry() {
            Ok(None) => break Ok(()),
            Ok(Some(mut info)) => {
                info.ultimate = false;
                if let Err(fault) = uploader.add(info, entries) {
                    break Err(fault);
                }
            }
            Err(error) => break Err(error.into()),
        }
    };
    // What came before stays, as with Nix.
    uploader.finish().and(taken)
}
