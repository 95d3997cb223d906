//! What the store can do, beside what one core of this machine can do, in one run.
//!
//! `cargo bench -p shoal-store` runs all; names of parts as arguments choose. `SHOAL_BENCH_TREE` is
//! the tree to store (the Rust toolchain's own by default), `SHOAL_BENCH_DIR` where stores are made.

mod keeping;
mod measure;
mod parts;
mod sample;

use measure::Report;

type Part = fn(&mut Report);

const PARTS: [(&str, Part); 10] = [
    ("pieces", parts::pieces),
    ("one", parts::one_nar),
    ("many", parts::many_nars),
    ("export", parts::export),
    ("levels", parts::levels),
    ("tiny", parts::tiny),
    ("huge", parts::huge),
    ("paths", parts::hundred_thousand_paths),
    ("gc", keeping::collection),
    ("dedup", keeping::dedup),
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
