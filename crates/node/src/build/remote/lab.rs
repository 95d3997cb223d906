//! Outcomes for tests.

use shoal_wire::mesh::builds::{BuiltOutput, Outcome};
use shoal_wire::nix::store_path::StorePath;

pub fn path(name: &str) -> StorePath {
    StorePath::from_base_name(&format!("{}-{name}", "a".repeat(32))).expect("a path")
}

/// What an executor says, with outputs by name: the name of the path, and each byte of the NAR's hash.
pub fn told(status: u8, outputs: &[(&str, &str, u8)]) -> Outcome {
    let output = |&(name, of, hash): &(&str, &str, u8)| {
        let built = BuiltOutput { path: path(of), nar_size: 1 << 20, nar_hash: [hash; 32] };
        (name.to_owned(), built)
    };
    Outcome {
        status,
        error: b"because".to_vec(),
        times_built: 1,
        is_non_deterministic: false,
        start_time: 0,
        stop_time: 0,
        cpu_user: None,
        cpu_system: None,
        outputs: outputs.iter().map(output).collect(),
        at: None,
        memory_mib: 0,
        out_of_memory: false,
        given_up: false,
    }
}
