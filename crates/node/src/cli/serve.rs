//! `shoal serve`

use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;

use clap::Args;

use super::{Global, Outcome, output, use_node};
use crate::client_setup::Setup;
use crate::config::{Config, ConfigFlags};
use crate::serve::{self, End, Start, passed};

#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    flags: ConfigFlags,
}

impl Serve {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(self.flags.clone())?.config;
        let flags = self.flags.clone();
        let end = serve::run(Start {
            verbose: global.verbose,
            coloured: output::coloured(io::stderr().is_terminal()),
            reload: Box::new(move || Ok(global.load(flags.clone())?.config)),
            on_ready: Box::new({
                let config = config.clone();
                move |ready, imported| {
                    if let Some(keys) = imported {
                        // A node runs whether or not somebody reads this.
                        let _ = welcome(&config, use_node::setup(&config, ready, None).ok().as_ref(), keys);
                    }
                    Ok(())
                }
            }),
            config,
        })?;
        match end {
            End::Stopped => Ok(()),
            End::Restart => Err(start_again().into()),
        }
    }
}

/// Becomes the same command anew. Comes back only where that fails.
fn start_again() -> io::Error {
    // The file may have been replaced by a newer version meanwhile, which is what is wanted then.
    passed::keep_for_next();
    let program = std::env::current_exe().unwrap_or_else(|_| "shoal".into());
    std::process::Command::new(program).args(std::env::args_os().skip(1)).exec()
}

/// What somebody who starts a node for the first time needs to know next.
fn welcome(config: &Config, setup: Option<&Setup>, keys: usize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "A new node in {}. Its clients need these lines (`shoal use` prints them again):\n",
        config.data_dir.display()
    )?;
    if let Some(setup) = setup {
        writeln!(out, "{}", setup.text())?;
    }
    let file = config.authorized_keys.display();
    match keys {
        0 => writeln!(out, "No SSH key may use it yet: `shoal client add KEY` puts one into {file}.")?,
        1 => writeln!(out, "Your SSH key may use it; `shoal client add KEY` lets others in.")?,
        n => writeln!(out, "Your {n} SSH keys may use it; `shoal client add KEY` lets others in.")?,
    }
    out.flush()
}
