//! `nix copy` of a large closure by a stock client: to an empty server, again when nothing is missing, and back.

use std::any::Any;
use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use shoal_tests::machine::Remote;
use shoal_tests::{Cmd, Machine, Nix, Node, Place};

use crate::closure::Closure;
use crate::machine::memory_mib;
use crate::report::{Bar, Report};
use crate::stock::{self, NO_STOCK, Stock};
use crate::{Plan, attempt};

/// Of one copy; stock Nix needs 20 s on a quiet machine.
const COPY_PATIENCE: Duration = Duration::from_secs(600);
/// A copy that finds nothing to do is short: taken more often.
const AGAINS: usize = 3;

const STOCK: &str = "stock ssh-ng";
const SHOAL: &str = "shoal ssh-ng";
const FLOOR: &str = "root to root";
const FILES: &str = "file:// to root";

const PUSH: &str = "copy to an empty store";
const AGAIN: &str = "copy with nothing missing";
const PULL: &str = "copy back to an empty root";

/// What clients copy, and the client.
struct Copy<'a> {
    closure: &'a Closure,
    client: &'a Machine,
    /// What contenders leave. A file system may be slower for minutes after much was deleted, so all of it stays until
    /// everybody was measured.
    left: RefCell<Vec<Box<dyn Any>>>,
}

type Round<'a> = (&'static str, Box<dyn Fn(&mut Report) -> Result<()> + 'a>);

impl Copy<'_> {
    /// Seconds of `nix copy` with these arguments.
    fn run(&self, cmd: Cmd, args: &[&str]) -> Result<f64> {
        // The file system's debts of the run before are not this run's.
        rustix::fs::sync();
        let cmd =
            cmd.env("NIX_CLIENT_ROOT", &self.closure.root).args(["copy", "--no-check-sigs", "--stdin"]).args(args);
        let finished = cmd.stdin(self.closure.stdin()?).patience(COPY_PATIENCE).run();
        if !finished.status.success() {
            bail!("{finished}");
        }
        Ok(finished.took.as_secs_f64())
    }

    fn back(&self, cmd: Cmd, from: &str) -> Result<f64> {
        let empty = Place::new("e");
        let took = self.run(cmd, &["--from", from, "--to", &local(empty.path())]);
        self.left.borrow_mut().push(Box::new(empty));
        took
    }

    /// There, again, and back.
    fn round(&self, report: &mut Report, who: &str, store: &str, cmd: &dyn Fn() -> Cmd) -> Result<()> {
        report.add(PUSH, who, "s", self.run(cmd(), &["--to", store])?)?;
        for _ in 0..AGAINS {
            report.add(AGAIN, who, "s", self.run(cmd(), &["--to", store])?)?;
        }
        report.add(PULL, who, "s", self.back(cmd(), store)?)
    }
}

fn local(root: &Path) -> String {
    format!("local?root={}", root.display())
}

pub fn measure(plan: &Plan, report: &mut Report) -> Result<()> {
    let nix = Nix::newest();
    let closure = Closure::get(&nix, plan)?;
    report.note(format!("{} paths, {:.0} MiB of NAR: {}", closure.paths, closure.nar_mib, closure.kind));
    let client = Machine::new(&nix);
    let copy = Copy { closure: &closure, client: &client, left: RefCell::default() };
    let cache = Place::new("f");
    let files = format!("file://{}?compression=none", cache.path().display());
    copy.run(client.local("nix"), &["--to", &files])?;
    if !stock::can_run() {
        report.note(NO_STOCK.into());
    }
    let back = |who: &'static str, from: String| -> Round<'_> {
        let copy = &copy;
        (who, Box::new(move |report| report.add(PULL, who, "s", copy.back(copy.client.local("nix"), &from)?)))
    };
    let mut rounds: Vec<Round<'_>> = vec![
        (STOCK, Box::new(|report| stock_round(&copy, &nix, report))),
        (SHOAL, Box::new(|report| shoal_round(&copy, report))),
        back(FLOOR, local(&closure.root)),
        back(FILES, files),
    ];
    rounds.retain(|(who, _)| *who != STOCK || stock::can_run());
    for _ in 0..plan.reps {
        for (who, round) in &rounds {
            if let Err(error) = attempt(|| round(report)) {
                report.failed(&format!("{who}: {error:#}"));
            }
        }
        rounds.rotate_left(1);
    }
    report.hold_ratio(PUSH, SHOAL, STOCK, Bar::AtMost(0.5));
    report.hold_ratio(AGAIN, SHOAL, STOCK, Bar::AtMost(0.5));
    report.hold_ratio(PULL, SHOAL, FLOOR, Bar::AtMost(1.0));
    Ok(())
}

fn stock_round(copy: &Copy, nix: &Nix, report: &mut Report) -> Result<()> {
    let server = Machine::new(nix);
    let stock = Stock::start(nix, &server.root(), 1, None)?;
    let options = stock.ssh_options();
    copy.round(report, STOCK, stock::STORE, &|| copy.client.local("nix").env("NIX_SSHOPTS", &options))?;
    copy.left.borrow_mut().push(Box::new(server));
    Ok(())
}

fn shoal_round(copy: &Copy, report: &mut Report) -> Result<()> {
    let mut node = Node::start(&[copy.client]);
    copy.round(report, SHOAL, &copy.client.store(&node, Remote::SshNg), &|| copy.client.near("nix", &node))?;
    report.add("most memory of the server", SHOAL, "MiB", memory_mib(node.ready().pid, "VmHWM"))?;
    node.stop();
    copy.left.borrow_mut().push(Box::new(node));
    Ok(())
}
