use super::*;

fn outcome(status: BuildStatus, outputs: &[(&str, u8)]) -> Outcome {
    let path = |name: &str| StorePath::from_base_name(&format!("{}-{name}", "a".repeat(32))).expect("a path");
    let output = |&(name, hash): &(&str, u8)| {
        let built = BuiltOutput { path: path(name), nar_size: 1, nar_hash: [hash; 32] };
        (name.to_owned(), built)
    };
    Outcome {
        status: status as u8,
        error: Vec::new(),
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

#[test]
fn what_is_published_is_what_was_voted_for() {
    let agreed = outcome(BuildStatus::Built, &[("out", 1), ("dev", 2)]);
    let made = |status, dev| is_as_agreed(&agreed, &outcome(status, &[("out", 1), ("dev", dev)]));
    assert!(made(BuildStatus::Built, 2));
    assert!(!made(BuildStatus::Built, 3));
    assert!(!made(BuildStatus::AlreadyValid, 3), "it had others already");
    assert!(!is_as_agreed(&agreed, &outcome(BuildStatus::Built, &[("lib", 1)])), "nobody voted for it");
    assert!(is_as_agreed(&agreed, &outcome(BuildStatus::PermanentFailure, &[])));
}
