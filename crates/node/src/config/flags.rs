//! The keys as command-line flags.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::key::{KEYS, Key, Set};

/// The key that every command takes, since it also says where a running node is.
const GLOBAL: &str = "data-dir";

/// Flags that were given, in the order of the table, each with its values.
#[derive(Clone, Default)]
pub struct ConfigFlags {
    pub given: Vec<(&'static Key, Vec<String>)>,
}

/// `--data-dir`, on every command.
#[derive(Clone, Default)]
pub struct DataDirFlag {
    pub given: ConfigFlags,
}

fn arg(key: &'static Key) -> Arg {
    let help = format!("{} [default: {}]", key.help, key.default);
    let arg = Arg::new(key.flag).long(key.flag).help(help).help_heading("Configuration");
    match key.set {
        Set::Switch(_) => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
        }
        Set::One(value, _) => arg.value_name(value),
        Set::Many(value, _) => arg.value_name(value).action(ArgAction::Append),
    }
}

fn given(matches: &ArgMatches, keys: impl Iterator<Item = &'static Key>) -> ConfigFlags {
    let values = |key: &'static Key| {
        let values = matches.try_get_many::<String>(key.flag).ok().flatten()?;
        Some((key, values.cloned().collect()))
    };
    ConfigFlags { given: keys.filter_map(values).collect() }
}

fn own_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.flag != GLOBAL)
}

fn global_key() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.flag == GLOBAL)
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        own_keys().fold(command, |command, key| command.arg(arg(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(given(matches, own_keys()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = given(matches, own_keys());
        Ok(())
    }
}

impl Args for DataDirFlag {
    fn augment_args(command: Command) -> Command {
        global_key().fold(command, |command, key| command.arg(arg(key).global(true).help_heading("Node")))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for DataDirFlag {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(DataDirFlag { given: given(matches, global_key()) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.given = given(matches, global_key());
        Ok(())
    }
}

impl ConfigFlags {
    pub fn and(mut self, other: &DataDirFlag) -> Self {
        self.given.extend(other.given.given.iter().cloned());
        self
    }

    /// One flag more, as if it had been given. A name outside the table is ignored.
    pub fn with(mut self, flag: &str, value: impl Into<String>) -> Self {
        self.given.extend(KEYS.iter().find(|key| key.flag == flag).map(|key| (key, vec![value.into()])));
        self
    }
}
