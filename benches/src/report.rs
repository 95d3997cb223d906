//! What was measured, and how it stands to the bars.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;

use crate::machine::{self, Speed};
use crate::samples::{Samples, number};

/// A bar on a ratio or on a number itself.
#[derive(Clone, Copy, Debug)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
}

impl Bar {
    fn is_met(self, value: f64) -> bool {
        match self {
            Bar::AtMost(most) => value <= most,
            Bar::AtLeast(least) => value >= least,
        }
    }

    fn shown(self) -> String {
        match self {
            Bar::AtMost(most) => format!("<= {most}"),
            Bar::AtLeast(least) => format!(">= {least}"),
        }
    }
}

/// One thing that was measured for one contender.
struct Row {
    section: &'static str,
    what: String,
    who: String,
    unit: &'static str,
    samples: Samples,
    /// In the words of another benchmark.
    told: Option<String>,
}

/// What a ratio is between.
#[derive(Default)]
struct Sides {
    ours: String,
    against: String,
}

/// A bar beside what it was held against.
struct Verdict {
    section: &'static str,
    what: String,
    ours: String,
    against: String,
    value: String,
    bar: String,
    mark: &'static str,
}

pub struct Report {
    section: &'static str,
    rows: Vec<Row>,
    verdicts: Vec<Verdict>,
    notes: Vec<(&'static str, String)>,
    speed: Speed,
    json: Option<File>,
    all_met: bool,
}

impl Report {
    pub fn new(json: Option<&Path>) -> Result<Report> {
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.with_context(|| format!("cannot write {}", path.display()))
        };
        let json = json.map(open).transpose()?;
        let (rows, verdicts, notes) = Default::default();
        Ok(Report { section: "", rows, verdicts, notes, speed: Speed::default(), json, all_met: true })
    }

    /// What follows belongs to this section.
    pub fn begin(&mut self, section: &'static str) {
        self.section = section;
        let busy = machine::busy_share();
        eprintln!("# {section}");
        self.note(format!("before it, others kept {:.0} % of the machine busy", busy * 100.0));
    }

    pub fn note(&mut self, text: String) {
        eprintln!("  {text}");
        self.notes.push((self.section, text));
    }

    pub fn failed(&mut self, why: &str) {
        eprintln!("  failed: {why}");
        let first = why.lines().next().unwrap_or_default();
        self.notes.push((self.section, format!("**failed**: {first}")));
        self.all_met = false;
    }

    /// One measurement of `what` for the contender `who`.
    pub fn add(&mut self, what: &str, who: &str, unit: &'static str, value: f64) -> Result<()> {
        eprintln!("  {what}: {who} {} {unit}", number(value));
        let sha256_mib_s = self.speed.sample();
        if let Some(file) = &mut self.json {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
            let line = json!({
                "section": self.section, "what": what, "who": who, "unit": unit, "value": value,
                "load": machine::load(), "sha256_mib_s": sha256_mib_s, "time": time,
            });
            writeln!(file, "{line}")?;
        }
        let section = self.section;
        let same = |row: &&mut Row| row.section == section && row.what == what && row.who == who;
        match self.rows.iter_mut().find(same) {
            Some(row) => row.samples.push(value),
            None => {
                let mut samples = Samples::default();
                samples.push(value);
                self.rows.push(Row { section, what: what.into(), who: who.into(), unit, samples, told: None });
            }
        }
        Ok(())
    }

    fn row(&self, what: &str, who: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.section == self.section && row.what == what && row.who == who)
    }

    /// Holds `what` of `ours` over `what` of `theirs` against the bar.
    pub fn hold_ratio(&mut self, what: &str, ours: &str, theirs: &str, bar: Bar) {
        let (Some(our), Some(their)) = (self.row(what, ours), self.row(what, theirs)) else { return };
        let ratio = our.samples.over(&their.samples);
        let side = |row: &Row| format!("{} {}", number(row.samples.median().unwrap_or(f64::NAN)), row.unit);
        let sides = Sides { ours: side(our), against: format!("{theirs}: {}", side(their)) };
        self.hold(what, sides, &ratio, "x", bar);
    }

    /// Holds `what` itself against the bar.
    pub fn hold_value(&mut self, what: &str, who: &str, bar: Bar) {
        let Some(row) = self.row(what, who) else { return };
        let (samples, unit) = (row.samples.clone(), row.unit);
        self.hold(what, Sides::default(), &samples, unit, bar);
    }

    fn hold(&mut self, what: &str, sides: Sides, value: &Samples, unit: &str, bar: Bar) {
        let is_met = value.median().is_some_and(|median| bar.is_met(median));
        let (value, bar) = (format!("{} {unit}", value.cell()), format!("{} {unit}", bar.shown()));
        self.judge(what, sides, value, bar, is_met);
    }

    fn judge(&mut self, what: &str, sides: Sides, value: String, bar: String, is_met: bool) {
        self.all_met &= is_met;
        let mark = if is_met { "✓" } else { "✗" };
        let Sides { ours, against } = sides;
        self.verdicts.push(Verdict { section: self.section, what: what.into(), ours, against, value, bar, mark });
    }

    /// What another benchmark measured: `1.02`, `700 MB/s`; and its bar, `>= 0.9`, `< 150 MiB` or none.
    pub fn tell(&mut self, what: &str, value: &str, bar: &str) -> Result<()> {
        let mut words = value.split_whitespace();
        let number: f64 = words.next().unwrap_or_default().parse().with_context(|| format!("{what}: {value}"))?;
        let section = self.section;
        self.add(what, "shoal", "", number)?;
        if let Some(row) = self.rows.iter_mut().rfind(|row| row.section == section && row.what == what) {
            row.told = Some(value.into());
        }
        let mut words = bar.split_whitespace();
        let (Some(sign), Some(limit)) = (words.next(), words.next()) else { return Ok(()) };
        let limit: f64 = limit.parse().with_context(|| format!("{what}: {bar}"))?;
        let bar_held = if sign.starts_with('>') { Bar::AtLeast(limit) } else { Bar::AtMost(limit) };
        let is_met = bar_held.is_met(number);
        self.judge(what, Sides::default(), value.into(), bar.into(), is_met);
        Ok(())
    }

    pub fn is_all_met(&self) -> bool {
        self.all_met
    }

    /// The bars first, then a table a section; `machine` says where this was.
    pub fn markdown(&self, machine: &str) -> String {
        let mut text = format!("\n{machine}; SHA-256 of one core, taken between measurements: {}\n", self.speed.cell());
        if !self.verdicts.is_empty() {
            text.push_str(
                "\n## Bars\n\n| | what | shoal | against | value | bar | |\n|---|---|---:|---|---:|---:|---|\n",
            );
        }
        for v in &self.verdicts {
            let Verdict { section, what, ours, against, value, bar, mark } = v;
            text.push_str(&format!("| {section} | {what} | {ours} | {against} | {value} | {bar} | {mark} |\n"));
        }
        let mut sections: Vec<_> = self.notes.iter().map(|(section, _)| *section).collect();
        sections.dedup();
        for section in sections {
            text.push_str(&self.section_table(section));
        }
        text
    }

    fn section_table(&self, section: &str) -> String {
        let rows: Vec<&Row> = self.rows.iter().filter(|row| row.section == section).collect();
        let mut who: Vec<&str> = Vec::new();
        let mut what: Vec<(&str, &str)> = Vec::new();
        for row in &rows {
            if !who.contains(&row.who.as_str()) {
                who.push(&row.who);
            }
            if !what.contains(&(&row.what, row.unit)) {
                what.push((&row.what, row.unit));
            }
        }
        let mut text = format!("\n## {section}\n\nMedian [least-most].");
        for (_, note) in self.notes.iter().filter(|(of, _)| *of == section) {
            text.push_str(&format!(" {note}."));
        }
        text.push_str(&format!("\n\n| | {} |\n|---|{}\n", who.join(" | "), "---:|".repeat(who.len())));
        for (what, unit) in what {
            let cell = |who: &&str| {
                let row = rows.iter().find(|row| row.what == what && row.who == **who);
                row.map(|row| row.told.clone().unwrap_or_else(|| row.samples.cell())).unwrap_or_default()
            };
            let cells: Vec<String> = who.iter().map(cell).collect();
            let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
            text.push_str(&format!("| {what}{unit} | {} |\n", cells.join(" | ")));
        }
        text
    }
}
