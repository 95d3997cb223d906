//! `shoal check-config`

use clap::Args;
use serde_json::{Value, json};

use super::{Global, Outcome, ReadArgs, output};
use crate::config::key::KEYS;
use crate::config::{ConfigFlags, Origin};

#[derive(Args)]
pub struct CheckConfig {
    #[command(flatten)]
    flags: ConfigFlags,
    #[command(flatten)]
    read: ReadArgs,
}

impl CheckConfig {
    pub fn run(&self, global: &Global) -> Outcome {
        let loaded = global.load(self.flags.clone())?;
        let values = serde_json::to_value(&loaded.config)?;
        let origin = |path: &str| loaded.origins.get(path).unwrap_or(&Origin::Default).to_string();
        let value = |path: &str| path.split('.').fold(&values, |value, part| &value[part]).clone();
        if self.read.json {
            let rows = KEYS.iter().map(|key| {
                let path = key.path();
                (path.clone(), json!({ "value": value(&path), "origin": origin(&path) }))
            });
            return Ok(output::json(&rows.collect::<serde_json::Map<_, _>>())?);
        }
        match &loaded.file {
            Some(file) => println!("# {} is read", file.display()),
            None => println!("# no configuration file is read"),
        }
        let rows = KEYS.iter().map(|key| {
            let path = key.path();
            vec![path.clone(), show(&value(&path)), format!("# {}", origin(&path))]
        });
        Ok(output::table(&rows.collect::<Vec<_>>())?)
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "none".into(),
        Value::Array(values) => values.iter().map(show).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}
