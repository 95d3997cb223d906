//! A slow link on one machine: a network namespace whose only way out leads through this process, which lets packets
//! pass at the link's speed and after its delay. Both ends are real TCP, so a server sees how far its client is. Kernels
//! often lack the queueing discipline that delays packets; this needs root and `/dev/net/tun`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use shoal_tests::Cmd;

/// The address of this side, of the range that is set apart for benchmarks (RFC 2544).
pub const HERE: &str = "198.18.0.1";
const THERE: &str = "198.18.0.2";
const BYTES_S: f64 = 100e6 / 8.0;
/// One way; the round trip is twice that.
const DELAY: Duration = Duration::from_millis(10);
/// Packets that wait at one end: twice what the link holds on its way, as a router has.
const QUEUE_BYTES: usize = 512 << 10;
const PACKET_BYTES_MAX: usize = 1 << 16;

/// Gone, with its namespace and devices, when dropped.
pub struct Link {
    namespace: String,
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
    /// When the link will have sent all that was given to it.
    free_at: Option<Instant>,
    is_closed: bool,
}

impl Link {
    pub fn start() -> Result<Link> {
        if !rustix::process::geteuid().is_root() {
            bail!("a network namespace needs root");
        }
        let id = std::process::id();
        let (namespace, near, far) = (format!("shoal{id}"), format!("shn{id}"), format!("shf{id}"));
        let (near_end, far_end) = (tun(&near)?, tun(&far)?);
        run(&format!("ip netns add {namespace}"))?;
        let link = Link { namespace, queues: Default::default() };
        let within = format!("ip -n {}", link.namespace);
        run(&format!("ip link set {far} netns {}", link.namespace))?;
        run(&format!("{within} addr add {THERE} peer {HERE} dev {far}"))?;
        run(&format!("{within} link set {far} up"))?;
        run(&format!("ip addr add {HERE} peer {THERE} dev {near}"))?;
        run(&format!("ip link set {near} up"))?;
        let ends = [(near_end.try_clone()?, far_end.try_clone()?), (far_end, near_end)];
        for ((from, to), queue) in ends.into_iter().zip(&link.queues) {
            let (takes, gives) = (queue.clone(), queue.clone());
            thread::spawn(move || takes.fill(from));
            thread::spawn(move || gives.drain(to));
        }
        Ok(link)
    }

    /// A program on the other side.
    pub fn beyond(&self, program: &Path) -> Cmd {
        Cmd::new("ip").args(["netns", "exec", &self.namespace]).arg(program)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for queue in &self.queues {
            queue.state.lock().unwrap_or_else(PoisonError::into_inner).is_closed = true;
            queue.changed.notify_all();
        }
        // The near device goes with its descriptors, at the latest when this process ends.
        let _ = run(&format!("ip netns del {}", self.namespace));
    }
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default()).args(words).output().context(command.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => bail!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

/// A new device whose packets are read and written here.
fn tun(name: &str) -> Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a value of this structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, byte) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and the structure is the one that this request takes.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("a device {name}")),
    }
}

impl Queue {
    /// Takes packets until the device is gone; drops them where too many wait, as a router does.
    fn fill(&self, mut from: File) {
        let mut packet = vec![0; PACKET_BYTES_MAX];
        while let Ok(len) = from.read(&mut packet) {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.is_closed {
                return;
            }
            if state.bytes + len > QUEUE_BYTES {
                continue;
            }
            let now = Instant::now();
            let sent = state.free_at.unwrap_or(now).max(now) + Duration::from_secs_f64(len as f64 / BYTES_S);
            state.free_at = Some(sent);
            state.bytes += len;
            state.packets.push_back((sent + DELAY, packet[..len].to_vec()));
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
