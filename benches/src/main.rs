//! Measures a node beside stock Nix on this machine, in one run, and prints what the ratios are.
//!
//! `./bench` at the root of the repository builds what is measured and runs this; `docs/benchmarks.md` says what each
//! number means.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::{Parser, ValueEnum};

mod closure;
mod contender;
mod graphs;
mod grid;
mod http;
mod idle;
mod limits;
mod link;
mod machine;
mod mesh;
mod noop;
mod push;
mod report;
mod samples;
mod sandbox;
mod serve;
mod stock;
mod store;
mod wrk;

use report::Report;

/// Runs a node beside stock Nix and prints a Markdown table of ratios, with a mark for each bar.
#[derive(Parser)]
#[command(name = "bench", max_term_width = 100)]
struct Args {
    /// Only these [default: all]
    #[arg(value_enum)]
    sections: Vec<Section>,
    /// How often each thing is measured; the contenders take turns
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    reps: u32,
    /// Share of the derivations, files and bytes to use, for a quick look; ratios then mean little
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    scale: f64,
    /// Append every single measurement to FILE, one JSON object a line
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Section {
    /// What the machine can do: hashing, copying, syncing, loopback
    Limits,
    /// Derivations that do nothing: local, through ssh-ng, through the build hook
    Noop,
    /// nix copy of a large closure, there, again, and back
    Push,
    /// The binary cache beside nginx on static files
    Serve,
    /// nix copy over HTTP: from the cache, beside nginx, and to it
    Http,
    /// NARs into the chunk store and out of it
    Store,
    /// A node that has nothing to do, and one that starts on a large store
    Idle,
    /// What one build costs beside its builder
    Sandbox,
    /// Chunks from node to node, beside bare connections
    Mesh,
    /// Several nodes as one builder, beside one and beside stock Nix
    Grid,
}

/// What every section is told.
struct Plan {
    reps: u32,
    scale: f64,
}

impl Plan {
    /// `full` at scale 1, never less than `least`.
    fn scaled(&self, full: usize, least: usize) -> usize {
        ((full as f64 * self.scale) as usize).max(least)
    }
}

fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_string())?;
    if scale > 0.0 && scale <= 1.0 { Ok(scale) } else { Err("above 0, at most 1".into()) }
}

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|arg| arg == shoal_sandbox::SUPERVISOR_ARG) {
        return sandbox::supervisor();
    }
    let args = Args::parse();
    // What a step panics with is told as the failure of its section.
    std::panic::set_hook(Box::new(|_| {}));
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every bar was met and nothing failed.
fn run(args: &Args) -> Result<bool> {
    let plan = Plan { reps: args.reps, scale: args.scale };
    let mut report = Report::new(args.json.as_deref())?;
    let sections = if args.sections.is_empty() { Section::value_variants() } else { &args.sections };
    for section in sections {
        report.begin(section.name());
        // The harness that nodes and clients come from panics where a step fails; the other sections still count.
        if let Err(error) = attempt(|| section.measure(&plan, &mut report)) {
            report.failed(&format!("{error:#}"));
        }
    }
    print!("{}", report.markdown(&machine::describe()));
    Ok(report.is_all_met())
}

/// What `step` gives, or what it panicked with.
fn attempt<T>(step: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| Err(told(panic)))
}

fn told(panic: Box<dyn Any + Send>) -> anyhow::Error {
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    anyhow!("{}", text.unwrap_or("panicked"))
}

impl Section {
    fn name(self) -> &'static str {
        match self {
            Section::Limits => "limits",
            Section::Noop => "noop",
            Section::Push => "push",
            Section::Serve => "serve",
            Section::Http => "http",
            Section::Store => "store",
            Section::Idle => "idle",
            Section::Sandbox => "sandbox",
            Section::Mesh => "mesh",
            Section::Grid => "grid",
        }
    }

    fn measure(self, plan: &Plan, report: &mut Report) -> Result<()> {
        match self {
            Section::Limits => limits::measure(plan, report),
            Section::Noop => noop::measure(plan, report),
            Section::Push => push::measure(plan, report),
            Section::Serve => serve::measure(plan, report),
            Section::Http => http::measure(plan, report),
            Section::Store => store::measure(plan, report),
            Section::Idle => idle::measure(plan, report),
            Section::Sandbox => sandbox::measure(plan, report),
            Section::Mesh => mesh::measure(plan, report),
            Section::Grid => grid::measure(plan, report),
        }
    }
}
