//! A slow link on one machine: a network namespace whose only way out leads through this process, which lets packets
//! pass at the link's speed and after its delay. Both ends are real TCP, so a server sees how far its client is. This
//! needs root and `/dev/net/tun`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use shoal_tests::Cmd;
use shoal_tests::cable::{Cable, Kind, Quality};
use shoal_tests::random::Random;

/// The address of this side, of the range that is set apart for benchmarks (RFC 2544).
pub const HERE: &str = "198.18.0.1";
const THERE: &str = "198.18.0.2";
/// 100 Mbit/s; the round trip is twice the delay.
const QUALITY: Quality = Quality { bytes_s: 100e6 / 8.0, delay: Duration::from_millis(10), lost_per_mille: 0 };

/// Gone, with its namespace and devices, when dropped.
pub struct Link {
    namespace: String,
    _cable: Cable,
}

impl Link {
    pub fn start() -> Result<Link> {
        if !rustix::process::geteuid().is_root() {
            bail!("a network namespace needs root");
        }
        let id = std::process::id();
        let (namespace, near, far) = (format!("shoal{id}"), format!("shn{id}"), format!("shf{id}"));
        let cable = Cable::lay(&near, &far, Kind::Packets, QUALITY, &mut Random::of(0))?;
        run(&format!("ip netns add {namespace}"))?;
        let link = Link { namespace, _cable: cable };
        let within = format!("ip -n {}", link.namespace);
        run(&format!("ip link set {far} netns {}", link.namespace))?;
        run(&format!("{within} addr add {THERE} peer {HERE} dev {far}"))?;
        run(&format!("{within} link set {far} up"))?;
        run(&format!("ip addr add {HERE} peer {THERE} dev {near}"))?;
        run(&format!("ip link set {near} up"))?;
        Ok(link)
    }

    /// A program on the other side.
    pub fn beyond(&self, program: &Path) -> Cmd {
        Cmd::new("ip").args(["netns", "exec", &self.namespace]).arg(program)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
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
