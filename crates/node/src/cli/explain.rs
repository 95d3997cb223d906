//! `shoal explain`: why derivations wait, or went where they went.

use clap::Args;
use serde_json::Value;

use super::{Global, Outcome, ReadArgs, output};
use crate::config::ConfigFlags;
use crate::control::{Request, client};

#[derive(Args)]
pub struct Explain {
    /// A derivation, an output of it, or the number of a request that nobody waits for; all that waits or runs without it
    #[arg(value_name = "DERIVATION|BUILD")]
    what: Option<String>,
    #[command(flatten)]
    read: ReadArgs,
}

impl Explain {
    pub fn run(&self, global: &Global) -> Outcome {
        let config = global.load(ConfigFlags::default())?.config;
        let mut explained = Vec::new();
        client::ask(&config.data_dir, &Request::Explain { what: self.what.clone() }, |item| {
            explained.push(item);
            Ok(())
        })?;
        if self.read.json {
            return Ok(output::json(&explained)?);
        }
        if explained.is_empty() {
            return Ok(output::line("nothing waits or runs")?);
        }
        explained.iter().try_for_each(|item| Ok(output::line(&text(item))?))
    }
}

/// One derivation for people: what it is at, then a line for each input, node and earlier try.
fn text(item: &Value) -> String {
    if let Some(more) = item["more"].as_u64() {
        return format!("and {more} more");
    }
    let word = |value: &Value, name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let mut lines = vec![format!("{} {}", word(item, "drv_path"), word(item, "text"))];
    let list = |name: &str| item[name].as_array().cloned().unwrap_or_default();
    let mut part = |title: &str, rows: Vec<String>| {
        if !rows.is_empty() {
            lines.push(format!("  {title}:"));
            // What nodes say may have several lines.
            lines.extend(rows.iter().map(|row| format!("    {}", row.trim_end().replace('\n', "\n    "))));
        }
    };
    let inputs = list("inputs");
    part(
        "inputs",
        inputs.iter().map(|input| format!("{}: {}", word(input, "drv_path"), word(input, "text"))).collect(),
    );
    let title = if item["state"] == "waits-for-place" { "nodes now" } else { "nodes when it was placed" };
    part(title, list("nodes").iter().map(|node| format!("{}: {}", word(node, "node"), word(node, "text"))).collect());
    let earlier = list("earlier");
    part(
        "before",
        earlier
            .iter()
            .map(|run| format!("{} for {} s: {}", word(run, "node"), run["seconds"], word(run, "end")))
            .collect(),
    );
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn people_read_a_line_for_each_node_and_each_earlier_try() {
        let node = |node: &str, text: &str| json!({ "node": node, "verdict": "no-slot", "text": text });
        let item = json!({
            "drv_path": "/nix/store/a.drv",
            "state": "waits-for-place",
            "text": "is ready and waits for a place",
            "seconds": 0,
            "inputs": [],
            "nodes": [node("n0", "no free slot: all 1 are taken"), node("n1", "draining: takes no new builds")],
            "earlier": [{ "node": "n1", "seconds": 3, "end": "lost: n1: nothing came in time\nfor long" }],
        });
        expect![[r#"
            /nix/store/a.drv is ready and waits for a place
              nodes now:
                n0: no free slot: all 1 are taken
                n1: draining: takes no new builds
              before:
                n1 for 3 s: lost: n1: nothing came in time
                for long"#]]
        .assert_eq(&text(&item));
        assert_eq!(text(&json!({ "more": 7 })), "and 7 more");
    }
}
