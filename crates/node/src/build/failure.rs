//! Why a derivation was not built, in the words and statuses that Nix's clients know.
//!
//! The texts follow Nix 2.34, colours included: people and tools (nix-update, Hydra) read them.

use std::time::Duration;

use shoal_grid::can_run::{Machine, Refusal};
use shoal_wire::nix::store_path::{StoreDir, StorePath};
use shoal_wire::nix::worker::BuildStatus;

const MAGENTA: &str = "\x1b[35;1m";
const RED: &str = "\x1b[31;1m";
const BOLD: &str = "\x1b[1m";
const NORMAL: &str = "\x1b[0m";

/// Paths named in a message before the rest is only counted.
const PATHS_NAMED_MAX: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: BuildStatus,
    pub message: String,
}

/// How a builder ended when it did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadEnd {
    ExitCode(i32),
    Signal(i32),
}

pub struct Texts<'a> {
    pub dir: &'a StoreDir,
    pub drv_path: &'a StorePath,
}

fn magenta(text: &str) -> String {
    format!("{MAGENTA}{text}{NORMAL}")
}

impl Failure {
    pub fn new(status: BuildStatus, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }

    /// Something between this node and its store went wrong; says nothing about the derivation.
    pub fn infrastructure(error: &anyhow::Error) -> Failure {
        Failure::new(BuildStatus::TransientFailure, format!("{error:#}"))
    }

    /// The builder read something that did not come.
    pub fn inputs_failed() -> Failure {
        let text = "some inputs could not be read while the builder ran; the node's log says which and why";
        Failure::new(BuildStatus::TransientFailure, text)
    }

    pub fn timed_out(after: Duration) -> Failure {
        Failure::new(BuildStatus::TimedOut, format!("timed out after {} seconds", after.as_secs()))
    }

    pub fn silent(after: Duration) -> Failure {
        Failure::new(BuildStatus::TimedOut, format!("timed out after {} seconds of silence", after.as_secs()))
    }

    pub fn cancelled() -> Failure {
        Failure::new(BuildStatus::MiscFailure, "the build was cancelled: nobody waits for it any more")
    }
}

impl Texts<'_> {
    fn drv(&self) -> String {
        self.dir.print(self.drv_path)
    }

    fn cannot_build(&self, reason: &str) -> String {
        format!("Cannot build '{}'.\nReason: {RED}{reason}{NORMAL}.", magenta(&self.drv()))
    }

    fn output_paths(&self, outputs: &[StorePath]) -> String {
        if outputs.is_empty() {
            return String::new();
        }
        let named: String = outputs.iter().map(|path| format!("\n  {}", magenta(&self.dir.print(path)))).collect();
        format!("\nOutput paths:{named}")
    }

    pub fn builder<'a>(
        &self,
        end: BadEnd,
        outputs: &[StorePath],
        last_lines: impl ExactSizeIterator<Item = &'a str>,
    ) -> Failure {
        let reason = match end {
            BadEnd::ExitCode(code) => format!("builder failed with exit code {code}"),
            BadEnd::Signal(signal) => format!("builder failed due to signal {signal} ({})", signal_name(signal)),
        };
        let mut message = self.cannot_build(&reason) + &self.output_paths(outputs);
        if last_lines.len() > 0 {
            message += &format!("\nLast {} log lines:", last_lines.len());
            last_lines.for_each(|line| message += &format!("\n> {line}"));
            message += &format!("\nFor full logs, run:\n  {BOLD}nix log {}{NORMAL}", self.drv());
        }
        Failure::new(BuildStatus::PermanentFailure, message)
    }

    /// What a builder had when the kernel ended it for want of memory. `limit_mib`: what it could have had.
    pub fn out_of_memory(&self, peak_mib: u64, limit_mib: Option<u64>) -> Failure {
        let mut message = self.cannot_build("builder ran out of memory");
        message += &match limit_mib {
            Some(limit_mib) => format!(
                "\nIt had {peak_mib} MiB of the {limit_mib} MiB that a build gets there.\n\
                 Raise 'build-memory-max' of a node, or add a node that has more."
            ),
            None => format!(
                "\nIt had {peak_mib} MiB when the machine had no more.\n\
                 Lower 'max-jobs' of the node, or add a node that has more."
            ),
        };
        Failure::new(BuildStatus::TransientFailure, message)
    }

    pub fn refused(&self, refusal: &Refusal, machine: &Machine) -> Failure {
        let mut message =
            format!("Cannot build '{}'.\nReason: {RED}{}{NORMAL}", magenta(&self.drv()), refusal.reason());
        let list = |items: &std::collections::BTreeSet<String>| items.iter().cloned().collect::<Vec<_>>().join(", ");
        message += &match refusal {
            Refusal::System { wanted, offered } => {
                format!("\nRequired system: '{wanted}'\nCurrent system: '{}'", list(offered))
            }
            Refusal::Features { missing } => {
                format!(
                    "\nRequired features: {{{}}}\nAvailable features: {{{}}}",
                    list(missing),
                    list(&machine.features)
                )
            }
        };
        Failure::new(BuildStatus::PermanentFailure, message)
    }

    pub fn dependency_failed(&self, outputs: &[StorePath]) -> Failure {
        let message = self.cannot_build("1 dependency failed") + &self.output_paths(outputs);
        Failure::new(BuildStatus::DependencyFailed, message)
    }

    /// So many nodes must agree on it, and not as many can build it.
    /// `said`: why nodes that were asked do not build it, a line each.
    pub fn too_few_votes(&self, needed: usize, able: usize, said: &[String]) -> Failure {
        let reason = format!("{needed} nodes must agree on it, and {able} can build it");
        let mut message = self.cannot_build(&reason);
        said.iter().for_each(|line| message += &format!("\n  {line}"));
        message +=
            "\nAdd nodes to the mesh, or lower 'build-quorum'; 'shoal peers' lists them, with what they can build.";
        Failure::new(BuildStatus::PermanentFailure, message)
    }

    /// What was never agreed on cannot be repaired: it would be made valid by one node.
    pub fn unrepairable(&self, needed: usize) -> Failure {
        let reason = format!("not all of its outputs are valid, and {needed} nodes must agree on them");
        let message = self.cannot_build(&reason) + "\nBuild it without repairing it first.";
        Failure::new(BuildStatus::PermanentFailure, message)
    }

    /// Given up because another goal of the same request failed.
    pub fn abandoned(&self, failed: &StorePath) -> Failure {
        let message = format!(
            "'{}' was not built, because '{}' failed; use --keep-going to build what can be built",
            self.drv(),
            self.dir.print(failed)
        );
        Failure::new(BuildStatus::DependencyFailed, message)
    }

    pub fn log_limit(&self, limit_bytes: u64) -> Failure {
        let message = format!("{} killed after writing more than {limit_bytes} bytes of log output", self.drv());
        Failure::new(BuildStatus::LogLimitExceeded, message)
    }

    pub fn missing_output(&self, output: &str, at: &str) -> Failure {
        let message =
            format!("builder for '{}' failed to produce output path for output '{output}' at \"{at}\"", self.drv());
        Failure::new(BuildStatus::OutputRejected, message)
    }

    pub fn cycle(&self, output: &str, from: &str) -> Failure {
        let drv = self.drv();
        let message =
            format!("cycle detected in build of '{drv}' in the references of output '{output}' from output '{from}'");
        Failure::new(BuildStatus::OutputRejected, message)
    }

    pub fn hash_mismatch(&self, specified: &str, got: &str) -> Failure {
        let drv = magenta(&self.drv());
        let message =
            format!("hash mismatch in fixed-output derivation '{drv}':\n  specified: {specified}\n     got:    {got}");
        Failure::new(BuildStatus::OutputRejected, message)
    }

    pub fn fixed_output_refers(&self, references: usize, example: &StorePath) -> Failure {
        let message = format!(
            "fixed-output derivations must not reference store paths: '{}' references {references} distinct paths, e.g. '{}'",
            self.drv(),
            self.dir.print(example)
        );
        Failure::new(BuildStatus::OutputRejected, message)
    }

    /// `rule` is Nix's phrase, such as "is not allowed to refer to the following paths".
    pub fn references_refused(&self, output: &StorePath, rule: &str, bad: &[StorePath]) -> Failure {
        let mut message = format!("output '{}' {rule}:", self.dir.print(output));
        bad.iter().take(PATHS_NAMED_MAX).for_each(|path| message += &format!("\n  {}", self.dir.print(path)));
        if bad.len() > PATHS_NAMED_MAX {
            message += &format!("\n  and {} more", bad.len() - PATHS_NAMED_MAX);
        }
        Failure::new(BuildStatus::OutputRejected, message)
    }

    /// `kept`: where what was built now is, for those who asked that it be kept.
    pub fn not_deterministic(&self, output: &StorePath, kept: Option<&StorePath>) -> Failure {
        let mut message = format!(
            "derivation '{}' may not be deterministic: output '{}' differs",
            self.drv(),
            self.dir.print(output)
        );
        if let Some(kept) = kept {
            message += &format!(" from '{}'", self.dir.print(kept));
        }
        Failure::new(BuildStatus::NotDeterministic, message)
    }
}

/// An error as Nix prints it: the lines after the first stand under the text, not under `error:`.
pub fn error_text(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    format!("{RED}error:{NORMAL} {}\n", text.replace('\n', "\n       "))
}

fn signal_name(signal: i32) -> String {
    // SAFETY: strsignal returns a valid string for any number; it is copied before anything else can call it here.
    let name = unsafe { libc::strsignal(signal) };
    if name.is_null() {
        return signal.to_string();
    }
    // SAFETY: not null, and NUL-terminated as strsignal promises.
    unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned()
}
