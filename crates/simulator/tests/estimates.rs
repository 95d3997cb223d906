//! What builds took, as nodes tell each other: each asks another one by a digest of what it knows.

use shoal_grid::estimates::{Estimate, Estimates, UNKNOWN};
use shoal_grid::random::Random;
use shoal_wire::mesh::builds::{BuildAsk, BuildFrame, ESTIMATES_MAX, Took};
use shoal_wire::mesh::format::encode;

const LINUX: &str = "x86_64-linux";
const NOW_S: u64 = 1_000_000;
const NODES: usize = 60;

struct Mesh {
    nodes: Vec<Estimates>,
    random: Random,
    /// Of questions and answers.
    bytes: usize,
}

impl Mesh {
    fn new(seed: u64) -> Mesh {
        Mesh { nodes: vec![Estimates::default(); NODES], random: Random::new(seed), bytes: 0 }
    }

    /// Asks until an answer is not full, or has nothing new. So many answers it took.
    fn ask(&mut self, asker: usize, asked: usize) -> usize {
        let mut known = 0;
        for answers in 1.. {
            let digest = self.nodes[asker].digest(known);
            let rows = self.nodes[asked].differing(&digest, self.random.word(), ESTIMATES_MAX);
            let took = |(name, system, row): (&str, &str, Estimate)| {
                let Estimate { built_s, duration_ms, memory_mib } = row;
                Took { name: name.to_owned(), system: system.to_owned(), built_s, duration_ms, memory_mib }
            };
            let rows: Vec<Took> = rows.into_iter().map(took).collect();
            let is_full = rows.len() == ESTIMATES_MAX;
            known = self.nodes[asked].len();
            let mut is_any_new = false;
            for Took { name, system, built_s, duration_ms, memory_mib } in &rows {
                let (built_s, duration_ms, memory_mib) = (*built_s, *duration_ms, *memory_mib);
                is_any_new |=
                    self.nodes[asker].merge(name, system, Estimate { built_s, duration_ms, memory_mib }, NOW_S);
            }
            self.bytes += encode(&BuildAsk::Estimates(digest)).len();
            self.bytes += encode(&BuildFrame::Estimates { known: 0, rows }).len();
            if !is_full || !is_any_new {
                return answers;
            }
        }
        unreachable!("answers end")
    }

    /// Each node asks one other.
    fn round(&mut self) {
        for asker in 0..self.nodes.len() {
            let asked = self.random.below(self.nodes.len() as u64) as usize;
            if asked != asker {
                self.ask(asker, asked);
            }
        }
    }

    fn agree(&self) -> bool {
        let first = self.nodes[0].digest(0);
        self.nodes.iter().all(|node| node.digest(0) == first)
    }

    fn record(&mut self, node: usize, name: u64, at_s: u64) {
        let built = Estimate { built_s: at_s, duration_ms: 1_000 + name, memory_mib: name };
        self.nodes[node].record(&format!("package{name}"), LINUX, built);
    }
}

#[test]
fn what_one_node_has_built_all_know_after_some_rounds_for_few_bytes() {
    let mut mesh = Mesh::new(1);
    for name in 0..2_000 {
        let node = mesh.random.below(NODES as u64) as usize;
        mesh.record(node, name, name);
    }
    let rounds = (1..=40).find(|_| {
        mesh.round();
        mesh.agree()
    });
    println!("2,000 packages at {NODES} nodes: {rounds:?} rounds, {} bytes a node", mesh.bytes / NODES);
    assert!(rounds.is_some_and(|rounds| rounds <= 16), "{rounds:?}");
    mesh.bytes = 0;
    // What is built meanwhile.
    let mut rounds = 0;
    for name in 0..100 {
        mesh.record(name as usize % NODES, 7 * name, 10_000 + name);
    }
    while !mesh.agree() {
        mesh.round();
        rounds += 1;
    }
    let each = mesh.bytes / NODES / rounds;
    println!("100 more: {rounds} rounds, {each} bytes a node and round");
    assert!(rounds <= 16 && each < 20_000, "{rounds} rounds, {each} bytes");
    mesh.bytes = 0;
    mesh.round();
    assert!(mesh.bytes / NODES < 3_000, "{} bytes where there is nothing to tell", mesh.bytes / NODES);
}

#[test]
fn a_newcomer_knows_all_after_it_has_asked_one_node() {
    let mut mesh = Mesh::new(2);
    (0..30_000).for_each(|name| mesh.record(0, name, name));
    let answers = mesh.ask(1, 0);
    println!("30,000 packages: {answers} answers, {} bytes", mesh.bytes);
    assert_eq!(mesh.nodes[1].digest(0), mesh.nodes[0].digest(0));
    assert!(answers <= 45 && mesh.bytes < 4 << 20, "{answers} answers, {} bytes", mesh.bytes);
    assert_eq!(mesh.nodes[1].get("package77-1.0.drv", LINUX).duration_ms, 1_077);
}

#[test]
fn a_node_that_lies_moves_what_others_have_seen_by_a_factor_and_the_next_build_sets_it_right() {
    let mut mesh = Mesh::new(3);
    for node in 1..NODES {
        mesh.record(node, 1_000, 10);
    }
    let name = "package1000";
    let lie = Estimate { built_s: NOW_S, duration_ms: 86_400_000, memory_mib: 1 << 20 };
    mesh.nodes[0].record(name, LINUX, lie);
    mesh.nodes[0].record("package-of-the-future", LINUX, Estimate { built_s: u64::MAX, ..lie });
    (0..16).for_each(|_| mesh.round());
    for node in &mesh.nodes[1..] {
        let believed = node.get(name, LINUX);
        assert_eq!((believed.duration_ms, believed.memory_mib), (8_000, 4_000));
        assert_eq!(node.get("package-of-the-future", LINUX), UNKNOWN);
    }
    for built_s in 1..=6 {
        mesh.record(5, 1_000, NOW_S + built_s);
        (0..16).for_each(|_| mesh.round());
    }
    let believed = mesh.nodes[9].get(name, LINUX);
    assert!(believed.duration_ms < 2_300 && believed.memory_mib < 1_200, "{believed:?}");
}
