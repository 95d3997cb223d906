//! What a mounted store costs, beside the same tree on the local disk: `cargo bench -p shoal-fuse`.
//!
//! Ratios are taken within one turn, and the median of the turns is told. Needs a machine that can mount.

mod cold;
mod far;
#[path = "../../tests/fuse/paths.rs"]
mod paths;
mod visible;
mod warm;

fn main() {
    println!("| what | value | bar |\n|---|---:|---:|");
    // First, while the process holds nothing else.
    visible::run();
    warm::run();
    cold::run();
    far::run();
}

/// A line of the table.
fn row(what: &str, value: &str, bar: &str) {
    println!("| {what} | {value} | {bar} |");
}
