//! One ssh connection: who it is, and its channels.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{Algorithm, PublicKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty};
use tracing::{debug, info};

use super::{CHANNELS_MAX, Shared};
use crate::door::pipe::{Drain, Feed, Gate, Lane, Outgoing, STALL_LIMIT, SessionEnd, pipe};
use crate::door::{Grant, Peer, Program};

/// Exit status of a command that does not exist, as a shell has it.
const EXIT_NO_COMMAND: u32 = 127;
/// SSH's number for standard error among the extended data types (RFC 4254, 5.2).
const STDERR: u32 = 1;
/// A client that does not take the last words of its session in this time does without them.
const FAREWELL_LIMIT: Duration = Duration::from_secs(10);

pub struct Connection {
    shared: Arc<Shared>,
    id: u64,
    from: SocketAddr,
    gate: Arc<Gate>,
    grant: Option<Grant>,
    channels: HashMap<ChannelId, State>,
}

enum State {
    /// Opened, nothing asked for yet.
    Idle(ChannelWriteHalf<Msg>),
    /// A program was asked for. Its session starts with the client's first byte: one that never speaks costs no thread.
    Waiting {
        feed: Feed,
        program: Program,
        session: SessionEnd,
    },
    Running(Feed),
    /// Answered; only the client's close is missing.
    Done,
}

impl Connection {
    pub fn new(shared: Arc<Shared>, id: u64, from: SocketAddr, gate: Arc<Gate>) -> Self {
        Connection { shared, id, from, gate, grant: None, channels: HashMap::new() }
    }

    fn look_up(&self, key: &PublicKey, algorithm: &Algorithm) -> Option<Grant> {
        // RSA signatures over SHA-1 can be forged.
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return None;
        }
        self.shared.keys.grant(key)
    }

    /// The idle channel's writer; `None` where a program was asked for already.
    fn take_idle(&mut self, channel: ChannelId) -> Option<ChannelWriteHalf<Msg>> {
        match self.channels.insert(channel, State::Done)? {
            State::Idle(writer) => Some(writer),
            other => {
                self.channels.insert(channel, other);
                None
            }
        }
    }

    fn start_waiting(&mut self, channel: ChannelId) {
        let Some(grant) = self.grant.clone() else { return };
        if let Some(state) = self.channels.get_mut(&channel)
            && let State::Waiting { .. } = state
            && let State::Waiting { feed, program, session } = std::mem::replace(state, State::Done)
        {
            let peer = Peer { grant, from: format!("ssh {}", self.from) };
            self.shared.sessions.start(program, peer, session);
            *state = State::Running(feed);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.gate.is_lost() {
            let running = self.channels.values().filter_map(|state| match state {
                State::Running(feed) => Some(feed),
                _ => None,
            });
            running.for_each(Feed::lose);
        }
    }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _user: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, Self::Error> {
        Ok(self.look_up(offer.public_key, offer.algorithm).map_or_else(Auth::reject, |_| Auth::Accept))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        self.grant = self.look_up(key.public_key, key.algorithm);
        let Some(grant) = &self.grant else { return Ok(Auth::reject()) };
        debug!(user, role = %grant.role, "{} came in by ssh from {}", grant.who, self.from);
        self.shared.authenticated(self.id);
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if self.channels.len() >= CHANNELS_MAX {
            info!("{} wants more than {CHANNELS_MAX} channels at once", self.from);
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        // Input arrives by `data`, which never waits; the channel's own queue would stop the connection when full.
        let (_, writer) = channel.split();
        self.channels.insert(writer.id(), State::Idle(writer));
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(writer) = self.take_idle(channel) else { return session.channel_failure(channel) };
        session.channel_success(channel)?;
        let command = String::from_utf8_lossy(command);
        match Program::parse(&command) {
            Some(program) => {
                let (session, door) = pipe(self.gate.clone());
                tokio::spawn(pump(writer, door.drain));
                self.channels.insert(channel, State::Waiting { feed: door.feed, program, session });
            }
            None => {
                debug!("{} asked for {command:?}", self.from);
                let text = format!(
                    "shoal: {} serves Nix (nix-daemon --stdio, nix-store --serve) and runs no other command\n",
                    self.shared.node
                );
                tokio::spawn(farewell(writer, Some(STDERR), text, EXIT_NO_COMMAND));
            }
        }
        Ok(())
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), Self::Error> {
        let Some(writer) = self.take_idle(channel) else { return session.channel_failure(channel) };
        session.channel_success(channel)?;
        let who = self.grant.as_ref().map_or("you", |grant| &grant.who);
        let text = format!(
            "Hello {who}: this is the shoal node {}. It builds for Nix (--store ssh-ng://...) and has no shell.\r\n",
            self.shared.node
        );
        tokio::spawn(farewell(writer, None, text, 1));
        Ok(())
    }

    #[allow(clippy::too_many_arguments)] // The trait's signature.
    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _columns: u32,
        _rows: u32,
        _pixel_width: u32,
        _pixel_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        // Granted, so that the client goes on to ask for the shell and is told why there is none.
        session.channel_success(channel)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        _value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }

    async fn data(&mut self, channel: ChannelId, data: &[u8], _session: &mut Session) -> Result<(), Self::Error> {
        self.start_waiting(channel);
        if let Some(State::Running(feed)) = self.channels.get(&channel) {
            feed.push(data);
        }
        Ok(())
    }

    async fn channel_eof(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        match self.channels.get_mut(&channel) {
            Some(State::Running(feed)) => feed.end(),
            // Never spoke: the session ends before it began, with status 0.
            Some(state @ State::Waiting { .. }) => {
                if let State::Waiting { feed, session, .. } = std::mem::replace(state, State::Done) {
                    session.end.finish(0);
                    *state = State::Running(feed);
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn channel_close(&mut self, channel: ChannelId, _session: &mut Session) -> Result<(), Self::Error> {
        self.channels.remove(&channel);
        Ok(())
    }
}

/// Sends what a session writes, until it ends or the client takes nothing any more.
async fn pump(writer: ChannelWriteHalf<Msg>, mut drain: Drain) {
    while let Some(outgoing) = drain.next().await {
        let sent = match outgoing {
            Outgoing::Piece(Lane::Data, bytes) => tokio::time::timeout(STALL_LIMIT, writer.data_bytes(bytes)).await,
            Outgoing::Piece(Lane::Stderr, bytes) => {
                tokio::time::timeout(STALL_LIMIT, writer.extended_data_bytes(STDERR, bytes)).await
            }
            Outgoing::End(status) => {
                let _ = tokio::time::timeout(FAREWELL_LIMIT, finish(&writer, status)).await;
                return;
            }
        };
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                info!("a client took nothing for {} s and is dropped", STALL_LIMIT.as_secs());
                let _ = tokio::time::timeout(FAREWELL_LIMIT, writer.close()).await;
                return;
            }
        }
    }
}

async fn farewell(writer: ChannelWriteHalf<Msg>, extended: Option<u32>, text: String, status: u32) {
    let say = async {
        match extended {
            None => writer.data_bytes(text).await?,
            Some(lane) => writer.extended_data_bytes(lane, text).await?,
        }
        finish(&writer, status).await
    };
    let _ = tokio::time::timeout(FAREWELL_LIMIT, say).await;
}

async fn finish(writer: &ChannelWriteHalf<Msg>, status: u32) -> Result<(), russh::Error> {
    writer.exit_status(status).await?;
    writer.eof().await?;
    writer.close().await
}
