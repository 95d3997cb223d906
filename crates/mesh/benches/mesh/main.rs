//! What moving chunks between two nodes costs, beside what the same bytes cost on a bare connection, in one run.
//!
//! `cargo bench -p shoal-mesh` runs all; names of parts as arguments choose. `SHOAL_BENCH_TREE` is the tree whose files are
//! moved (`/usr` by default), `SHOAL_BENCH_MIB` how much of it, `SHOAL_BENCH_DIR` where stores are made,
//! `SHOAL_BENCH_REPEATS` how often contenders take turns. Both ends run in this process and share its cores.

mod lab;
mod members;
mod parts;
mod raw;
mod ring;
mod sample;

use parts::Report;

type Part = fn(&mut Report);

const PARTS: [(&str, Part); 9] = [
    ("one", parts::one_peer),
    ("alone", parts::chunks_alone),
    ("four", parts::four_peers),
    ("stall", parts::one_stalls),
    ("change", parts::small_change),
    ("cut", parts::cut_and_resumed),
    ("lookup", members::lookups),
    ("ring", ring::change),
    ("members", members::many),
];

fn main() {
    // cargo passes --bench.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let mut report = Report::default();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            part(&mut report);
        }
    }
    report.print();
}
