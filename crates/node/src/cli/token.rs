//! `shoal token`: who may use the node over HTTP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::role;
use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::parse_duration;
use crate::door::Role;
use crate::tokens;

#[derive(Subcommand)]
pub enum Token {
    /// Make a token and print it; it is not shown again
    Create(Create),
    /// Show the tokens that may use the node
    List(ReadArgs),
    /// Make a token useless
    Remove(Remove),
}

#[derive(Args)]
pub struct Create {
    /// What it may do: read, push (also upload what it can prove), build, or admin (is believed)
    #[arg(long, value_parser = role)]
    role: Role,
    /// How long it is good for, like 30d; for ever by default
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// What to call it; the role and the time by default
    #[arg(long)]
    name: Option<String>,
}

#[derive(Args)]
pub struct Remove {
    /// Its name, or the token itself
    token: String,
}

impl Token {
    pub fn run(&self, global: &Global) -> Outcome {
        let file = tokens::file(&global.load(ConfigFlags::default())?.config.data_dir);
        match self {
            Token::Create(Create { role, ttl, name }) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                let name = name.clone().unwrap_or_else(|| format!("{role}-{now}"));
                println!("{}", tokens::create(&file, &name, *role, *ttl)?);
            }
            Token::Remove(Remove { token }) => tokens::remove(&file, token)?,
            Token::List(read) => {
                let tokens = tokens::list(&file)?;
                if read.json {
                    let row = |token: &tokens::Token| json!({ "name": token.name, "role": token.role.to_string(), "expires": token.expires });
                    return Ok(output::json(&tokens.iter().map(row).collect::<Vec<_>>())?);
                }
                let row = |token: &tokens::Token| {
                    let end = match token.expires {
                        None => "for ever".to_owned(),
                        Some(_) if token.is_over() => "is over".to_owned(),
                        Some(end) => format!("until {end}"),
                    };
                    vec![token.name.clone(), token.role.to_string(), end]
                };
                output::table(&tokens.iter().map(row).collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }
}
