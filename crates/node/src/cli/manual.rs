//! `shoal completions` and `shoal man`, from the definition of the command line.

use std::io;

use clap::{Args, Command};
use clap_complete::Shell;

use super::Outcome;

#[derive(Args)]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run(&self, mut command: Command) -> Outcome {
        clap_complete::generate(self.shell, &mut command, "shoal", &mut io::stdout());
        Ok(())
    }
}

/// One page: the program, then each command with its options.
pub fn man(command: Command) -> Outcome {
    let mut page = Vec::new();
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let top = clap_mangen::Man::new(command.clone());
    top.render_title(&mut page)?;
    top.render_name_section(&mut page)?;
    top.render_synopsis_section(&mut page)?;
    top.render_description_section(&mut page)?;
    top.render_options_section(&mut page)?;
    commands(&command, "shoal", &mut page)?;
    io::Write::write_all(&mut io::stdout(), &page)?;
    Ok(())
}

/// A section for each command below `parent`, at any depth.
fn commands(parent: &Command, prefix: &str, page: &mut Vec<u8>) -> io::Result<()> {
    for command in parent.get_subcommands() {
        let name = format!("{prefix} {}", command.get_name());
        page.extend(format!(".SH \"{}\"\n", name.to_uppercase()).bytes());
        let man = clap_mangen::Man::new(command.clone());
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        man.render_options_section(page)?;
        commands(command, &name, page)?;
    }
    Ok(())
}
