//! `shoal status` and `shoal builds`: what a node is doing.

use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::config::units::{show_duration, size_text};
use crate::control::{Request, client};

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    read: ReadArgs,
}

#[derive(Args)]
pub struct Builds {
    #[command(flatten)]
    read: ReadArgs,
}

impl Status {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let status = client::ask_one(&config.data_dir, &Request::Status)?;
        if self.read.json {
            return Ok(output::json(&status)?);
        }
        let text = |pointer: &str| status.pointer(pointer).and_then(Value::as_str).unwrap_or("none").to_string();
        let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        let up = show_duration(Duration::from_secs(number("/uptime_seconds")));
        let draining = if status.pointer("/builds/draining") == Some(&Value::Bool(true)) { ", draining" } else { "" };
        let rows = [
            ("node", format!("{} ({})", text("/name"), text("/node_id"))),
            ("version", format!("{}, up {up}, pid {}{draining}", text("/version"), number("/pid"))),
            ("ssh", text("/ssh")),
            ("socket", text("/socket")),
            ("store", format!("{} paths, {} on disk", number("/store/paths"), size_text(number("/store/disk_bytes")))),
            ("mesh", mesh_text(&status["membership"])),
            ("inputs", inputs_text(&status["inputs"])),
            ("clients", number("/sessions").to_string()),
            (
                "builds",
                format!(
                    "{} of {} running, {} waiting",
                    status.pointer("/builds/running").and_then(Value::as_array).map_or(0, Vec::len),
                    number("/builds/max_jobs"),
                    number("/builds/waiting")
                ),
            ),
        ];
        let mut rows = rows.map(|(name, value)| vec![name.to_string(), value]).to_vec();
        let demand = status.pointer("/builds/demand").and_then(Value::as_array);
        rows.extend(demand.into_iter().flatten().map(|kind| vec!["demand".to_string(), demand_text(kind)]));
        let upstreams = status["upstreams"].as_array().into_iter().flatten();
        rows.extend(upstreams.map(|upstream| vec!["upstream".to_string(), upstream_text(upstream)]));
        if !status["cold"].is_null() {
            rows.push(vec!["cold".to_string(), super::cold::text(&status["cold"])]);
        }
        Ok(output::table(&rows)?)
    }
}

/// How builds see their inputs.
fn inputs_text(inputs: &Value) -> String {
    let kind = inputs["kind"].as_str().unwrap_or_default();
    let number = |name: &str| inputs[name].as_u64().unwrap_or(0);
    let counts =
        format!("{} builds with views, {} with trees", number("builds_with_views"), number("builds_with_trees"));
    match inputs["views"].as_bool() {
        Some(true) => format!("{kind}: {counts}"),
        _ => format!("{kind}: {counts}; no views: {}", inputs["lacks"].as_str().unwrap_or_default()),
    }
}

fn mesh_text(membership: &Value) -> String {
    let number = |name: &str| membership[name].as_u64().unwrap_or(0);
    match number("members") {
        0 => "none".into(),
        1 => "alone; 'shoal mesh invite' lets another node in".into(),
        members => format!("{} of {members} nodes live, {} copies of each path", number("live"), number("copies")),
    }
}

/// An upstream in one line.
fn upstream_text(upstream: &Value) -> String {
    let number = |name: &str| upstream[name].as_u64().unwrap_or(0);
    let latency = upstream["latency_ms"].as_f64().map(|ms| format!(", {ms:.1} ms")).unwrap_or_default();
    format!(
        "{} {}{latency}, {} found, {} missing, {} failed, {} paths fetched ({})",
        upstream["url"].as_str().unwrap_or_default(),
        upstream["state"].as_str().unwrap_or_default(),
        number("found"),
        number("missing"),
        number("failed"),
        number("fetched_paths"),
        size_text(number("fetched_bytes"))
    )
}

/// What waits for slots, of one kind.
fn demand_text(kind: &Value) -> String {
    let features = kind["features"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let asked: Vec<&str> = std::iter::once(kind["system"].as_str().unwrap_or("other")).chain(features).collect();
    let work = |name: &str| {
        let number = |field: &str| kind[name][field].as_u64().unwrap_or(0);
        format!("{} {name} ({})", number("jobs"), show_duration(Duration::from_secs(number("slot_seconds"))))
    };
    format!("{}: {}, {} within a minute", asked.join(" "), work("ready"), work("coming"))
}

impl Builds {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let mut builds = Vec::new();
        client::ask(&config.data_dir, &Request::Builds, |item| {
            builds.push(item);
            Ok(())
        })?;
        if self.read.json {
            return Ok(output::json(&builds)?);
        }
        let cell = |build: &Value, name: &str| match &build[name] {
            Value::String(text) => text.clone(),
            Value::Number(number) if name == "seconds" => {
                show_duration(Duration::from_secs(number.as_u64().unwrap_or(0)))
            }
            other => other.to_string(),
        };
        // A request is shown by its number, which cancels it.
        let what = |build: &Value| match (&build["id"], build["wanted"].as_array()) {
            (Value::Number(id), Some(wanted)) => {
                let wanted: Vec<&str> = wanted.iter().filter_map(Value::as_str).collect();
                let of = build["instead_of"].as_str().map(|node| format!(" (asked of '{node}', which was lost)"));
                format!("{id}: {}{}", wanted.join(" "), of.unwrap_or_default())
            }
            _ => cell(build, "drv_path"),
        };
        let rows: Vec<_> =
            builds.iter().map(|build| vec![cell(build, "state"), cell(build, "seconds"), what(build)]).collect();
        Ok(output::table(&rows)?)
    }
}
