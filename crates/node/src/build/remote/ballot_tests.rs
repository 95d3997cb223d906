use super::*;
use crate::build::remote::lab::told;

fn outcome(status: BuildStatus, outputs: &[(&str, u8)]) -> Outcome {
    let outputs: Vec<(&str, &str, u8)> = outputs.iter().map(|&(name, hash)| (name, name, hash)).collect();
    told(status as u8, &outputs)
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
