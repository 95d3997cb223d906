//! What a build costs that does nothing.

use std::path::Path;
use std::time::Instant;

use shoal_sandbox::{Event, Input, Program, SUPERVISOR_ARG, Spec, remove_tree, spawn, supervisor_main};

const BUSYBOX: &str = "00000000000000000000000000000000-busybox";

fn main() {
    if std::env::args().nth(1).as_deref() == Some(SUPERVISOR_ARG) {
        supervisor_main(|_, _| 0);
    }
    let base = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench");
    let _ = std::fs::remove_dir_all(&base);
    let trees = base.join("t");
    std::fs::create_dir_all(&trees).unwrap();
    std::fs::create_dir_all(trees.join(BUSYBOX)).unwrap();
    std::fs::copy("/bin/busybox", trees.join(BUSYBOX).join("busybox")).unwrap();
    let mut inputs = vec![Input { name: BUSYBOX.into(), tree: trees.join(BUSYBOX) }];
    for i in 1..1000 {
        let name = format!("{i:032}-input{i}");
        let tree = trees.join(&name);
        if i % 10 == 9 {
            std::fs::write(&tree, "x").unwrap();
        } else {
            std::fs::create_dir_all(tree.join("bin")).unwrap();
        }
        inputs.push(Input { name, tree });
    }
    for (count, gap) in [(0, 0), (1, 0), (1, 100), (8, 0), (9, 0), (100, 0), (1000, 0), (1000, 100)] {
        let mut totals = Vec::new();
        let mut setups = Vec::new();
        for n in 0..60 {
            let scratch = base.join(format!("s{count}-{gap}-{n}"));
            std::fs::create_dir(&scratch).unwrap();
            let mut spec = Spec::new(
                &scratch,
                Program::Exec { path: format!("/nix/store/{BUSYBOX}/busybox").into(), argv: vec![b"true".to_vec()] },
            );
            spec.inputs = inputs[..count].to_vec();
            if count == 0 {
                spec.program = Program::Builtin { name: "x".into(), payload: vec![] };
            }
            let start = Instant::now();
            let mut running = spawn(&spec).unwrap();
            let outcome = loop {
                match running.next(None).unwrap() {
                    Some(Event::Exited(outcome)) => break outcome,
                    Some(Event::Output(text)) => print!("{}", String::from_utf8_lossy(&text)),
                    None => {}
                }
            };
            totals.push(start.elapsed().as_micros());
            setups.push(outcome.setup_us);
            if n == 0 {
                println!("{outcome:?}");
            }
            remove_tree(&scratch).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(gap));
        }
        totals.sort();
        setups.sort();
        println!(
            "inputs {count:5} gap {gap} ms: total min {} median {} p90 {} us; setup min {} median {} us",
            totals[0], totals[30], totals[54], setups[0], setups[30]
        );
    }
}
