//! Machines on a network of their own that can be cut in two: a network namespace each, on one of two bridges, by cables
//! that can be long and lossy.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cable::{Cable, Kind, Quality};
use crate::random::Random;

/// Of the range that is set apart for measurements of networks (RFC 2544).
const PREFIX: &str = "198.19.7";

/// Gone, with all its namespaces, when dropped.
pub struct Network {
    id: String,
    count: usize,
    cables: Vec<Cable>,
}

impl Network {
    /// `None`, and a line that says why, where this machine has no such networks.
    pub fn start(count: usize) -> Option<Network> {
        Network::start_with(count, None)
    }

    /// The same, with cables of this quality from each machine to its bridge.
    pub fn start_far(count: usize, quality: Quality) -> Option<Network> {
        Network::start_with(count, Some((quality, Random::seeded())))
    }

    fn start_with(count: usize, far: Option<(Quality, Random)>) -> Option<Network> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        // Names of devices have at most fifteen letters.
        let id = format!("{}{}", STARTED.fetch_add(1, Ordering::Relaxed), std::process::id());
        let mut network = Network { id, count, cables: Vec::new() };
        match network.build(far) {
            Ok(()) => Some(network),
            Err(why) => {
                println!("skipped: it needs root, bridges and network namespaces: {why}");
                None
            }
        }
    }

    fn build(&mut self, mut far: Option<(Quality, Random)>) -> Result<(), String> {
        for side in 0..2 {
            run(&format!("ip link add {} type bridge", self.bridge(side)))?;
            run(&format!("ip link set {} up", self.bridge(side)))?;
        }
        for number in 0..self.count {
            let (namespace, port) = (self.namespace(number), self.port(number));
            run(&format!("ip netns add {namespace}"))?;
            match &mut far {
                None => run(&format!("ip link add {port} type veth peer name eth0 netns {namespace}"))?,
                Some((quality, random)) => {
                    let end = format!("se{number}x{}", self.id);
                    let cable = Cable::lay(&port, &end, Kind::Frames, *quality, random);
                    self.cables.push(cable.map_err(|error| format!("{error:#}"))?);
                    run(&format!("ip link set {end} netns {namespace}"))?;
                    run(&format!("ip -n {namespace} link set {end} name eth0"))?;
                }
            }
            run(&format!("ip link set {port} master {} up", self.bridge(0)))?;
            run(&format!("ip -n {namespace} addr add {}/24 dev eth0", self.address(number)))?;
            run(&format!("ip -n {namespace} link set eth0 up"))?;
            run(&format!("ip -n {namespace} link set lo up"))?;
        }
        Ok(())
    }

    fn bridge(&self, side: usize) -> String {
        format!("sb{side}x{}", self.id)
    }

    fn port(&self, number: usize) -> String {
        format!("sp{number}x{}", self.id)
    }

    pub fn namespace(&self, number: usize) -> String {
        format!("shoal-{}-{number}", self.id)
    }

    pub fn address(&self, number: usize) -> String {
        format!("{PREFIX}.{}", number + 1)
    }

    /// Those machines reach each other and nobody else from now on, as do the others.
    pub fn split(&self, apart: &[usize]) {
        self.connect(apart, 1);
    }

    pub fn heal(&self) {
        self.connect(&(0..self.count).collect::<Vec<_>>(), 0);
    }

    fn connect(&self, machines: &[usize], side: usize) {
        for &number in machines {
            let moved = run(&format!("ip link set {} master {}", self.port(number), self.bridge(side)));
            moved.unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made is not there to be removed.
        for number in 0..self.count {
            let _ = run(&format!("ip link del {}", self.port(number)));
            let _ = run(&format!("ip netns del {}", self.namespace(number)));
        }
        for side in 0..2 {
            let _ = run(&format!("ip link del {}", self.bridge(side)));
        }
    }
}

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output().map_err(|error| format!("{command}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}
