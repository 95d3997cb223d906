//! A cable whose two ends are network devices of this machine, and which is as slow, long and lossy as it is told to be:
//! this process lets packets pass. Kernels often lack the queueing discipline that does it. It needs root and
//! `/dev/net/tun`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::random::Random;

/// Packets that wait at one end, as a router has.
const QUEUE_BYTES: usize = 512 << 10;
const PACKET_BYTES_MAX: usize = 1 << 16;
const PER_MILLE: u64 = 1000;

/// What passes through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Packets of IP; each end is a point of a link.
    Packets,
    /// Frames of Ethernet; an end can be a port of a bridge.
    Frames,
}

#[derive(Clone, Copy, Debug)]
pub struct Quality {
    pub bytes_s: f64,
    /// One way.
    pub delay: Duration,
    /// Of a thousand packets so many are lost, each way.
    pub lost_per_mille: u64,
}

/// Carries nothing any more when dropped. Its devices go when they are deleted, or when this process ends.
pub struct Cable {
    queues: [Arc<Queue>; 2],
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    packets: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// When the cable will have sent all that was given to it.
    free_at: Option<Instant>,
    is_closed: bool,
}

impl Cable {
    /// Makes two devices with these names, between which `quality` holds. `random` says what is lost.
    pub fn lay(near: &str, far: &str, kind: Kind, quality: Quality, random: &mut Random) -> Result<Cable> {
        let (near, far) = (device(near, kind)?, device(far, kind)?);
        let cable = Cable { queues: Default::default() };
        let ends = [(near.try_clone()?, far.try_clone()?), (far, near)];
        for ((from, to), queue) in ends.into_iter().zip(&cable.queues) {
            let (takes, gives, luck) = (queue.clone(), queue.clone(), random.split());
            thread::spawn(move || takes.fill(from, quality, luck));
            thread::spawn(move || gives.drain(to));
        }
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
            queue.changed.notify_all();
        }
    }
}

/// A new device whose packets are read and written here.
fn device(name: &str, kind: Kind) -> Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = byte as libc::c_char;
    }
    let kind = match kind {
        Kind::Packets => libc::IFF_TUN,
        Kind::Frames => libc::IFF_TAP,
    };
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and the structure is the one that this request takes.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("a device {name}")),
    }
}

impl Queue {
    /// Takes packets until the device is gone; drops them where too many wait, as a router does, or where it is their lot.
    fn fill(&self, mut from: File, quality: Quality, mut luck: Random) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        while let Ok(len) = from.read(&mut packet) {
            let is_lost = luck.below(PER_MILLE) < quality.lost_per_mille;
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.is_closed {
                return;
            }
            if is_lost || state.bytes + len > QUEUE_BYTES {
                continue;
            }
            let now = Instant::now();
            let sent = state.free_at.unwrap_or(now).max(now) + Duration::from_secs_f64(len as f64 / quality.bytes_s);
            state.free_at = Some(sent);
            state.bytes += len;
            state.packets.push_back((sent + quality.delay, packet[..len].to_vec()));
            self.changed.notify_one();
        }
    }

    fn drain(&self, mut to: File) {
        loop {
            let (at, packet) = {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                loop {
                    if state.is_closed {
                        return;
                    }
                    if let Some((at, packet)) = state.packets.pop_front() {
                        state.bytes -= packet.len();
                        break (at, packet);
                    }
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            };
            thread::sleep(at.saturating_duration_since(Instant::now()));
            // A packet that the other end refuses is lost, as packets are.
            let _ = to.write(&packet);
        }
    }
}
