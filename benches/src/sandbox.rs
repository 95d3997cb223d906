//! What one build costs beside its builder: a sandbox is made, a program that does nothing runs, everything is gone.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use shoal_sandbox::{Event, Input, Program, Spec, remove_tree, spawn, supervisor_main};
use shoal_tests::{Nix, Place};

use crate::Plan;
use crate::report::{Bar, Report};
use crate::samples::Samples;

/// Sandboxes of one size in a row, each time it is measured.
const ROW: usize = 20;
const INPUTS: [usize; 3] = [1, 100, 1000];
/// For one sandbox.
const PATIENCE: Duration = Duration::from_secs(60);

const SHOAL: &str = "shoal sandbox";
const SHELL: &str = "00000000000000000000000000000000-shell";

/// The supervisor of a sandbox is this program, started again.
pub fn supervisor() -> ExitCode {
    supervisor_main(|_, _| 1)
}

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let place = Place::new("sb");
    let inputs = inputs(place.path(), &Nix::newest())?;
    for rep in 0..plan.reps {
        for count in INPUTS {
            let (mut set_up, mut whole) = (Samples::default(), Samples::default());
            for number in 0..ROW {
                let scratch = place.join(&format!("{rep}-{count}-{number}"));
                fs::create_dir(&scratch)?;
                let (one_set_up, one_whole) = build(&scratch, &inputs[..count])?;
                set_up.push(one_set_up);
                whole.push(one_whole);
                remove_tree(&scratch)?;
            }
            for (what, row) in [("set-up", set_up), ("from asking to the end", whole)] {
                report.add(&format!("{what}, {count} inputs"), SHOAL, "ms", row.median().unwrap_or(f64::NAN))?;
            }
        }
    }
    report.hold_value("set-up, 1000 inputs", SHOAL, Bar::AtMost(5.0));
    Ok(())
}

/// A shell and directories, one in ten a file.
fn inputs(place: &Path, nix: &Nix) -> Result<Vec<Input>> {
    let tree = place.join(SHELL);
    fs::create_dir(&tree)?;
    fs::copy(nix.busybox(), tree.join("busybox"))?;
    let mut inputs = vec![Input { name: SHELL.into(), tree }];
    for number in 1..INPUTS.into_iter().max().unwrap_or(1) {
        let name = format!("{number:032}-input");
        let tree = place.join(&name);
        if number % 10 == 0 {
            fs::write(&tree, "contents")?;
        } else {
            fs::create_dir_all(tree.join("bin"))?;
        }
        inputs.push(Input { name, tree });
    }
    Ok(inputs)
}

/// Ms until the builder was executed, as its supervisor saw it; and ms until all was over, as seen from here.
fn build(scratch: &Path, inputs: &[Input]) -> Result<(f64, f64)> {
    let path = format!("/nix/store/{SHELL}/busybox").into_bytes();
    let mut spec = Spec::new(scratch, Program::Exec { path, argv: vec![b"true".to_vec()] });
    spec.inputs = inputs.to_vec();
    let since = Instant::now();
    let mut running = spawn(&spec)?;
    loop {
        match running.next(Some(since + PATIENCE))? {
            Some(Event::Exited(outcome)) if outcome.end == shoal_sandbox::End::Exited(0) => {
                return Ok((outcome.setup_us as f64 / 1e3, since.elapsed().as_secs_f64() * 1e3));
            }
            Some(Event::Exited(outcome)) => bail!("the builder should have succeeded: {outcome:?}"),
            Some(Event::Output(_)) => {}
            None if since.elapsed() > PATIENCE => bail!("not done after {PATIENCE:?}"),
            None => {}
        }
    }
}
