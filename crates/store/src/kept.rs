//! Pins: paths that are kept under a name, for ever or until a time.
//!
//! A row of the table: `1u8`, the second since 1970 at which it ends (u64, all ones for never), and the base names of
//! its paths, one a line. A pin that has ended keeps nothing; the next collection takes its row away.

use crate::error::{Damage, Result};
use crate::index::tables::KEPT;
use crate::paths::base_name;
use crate::store::Store;
use redb::ReadableTable;
use shoal_wire::nix::store_path::StorePath;

const VERSION: u8 = 1;
const NEVER: u64 = u64::MAX;

/// Longest name of a pin, in bytes.
pub const PIN_NAME_LEN_MAX: usize = 255;

/// Paths that are kept, with all they refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    pub name: String,
    /// In order, each once; valid or not yet.
    pub paths: Vec<StorePath>,
    /// Seconds since 1970; `None` for ever.
    pub until: Option<u64>,
}

impl Pin {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION];
        out.extend_from_slice(&self.until.unwrap_or(NEVER).to_le_bytes());
        let names: Vec<&str> = self.paths.iter().map(StorePath::base_name).collect();
        out.extend_from_slice(names.join("\n").as_bytes());
        out
    }

    fn decode(name: &str, row: &[u8]) -> Result<Pin> {
        let damaged = || Damage::record(name, "unknown version of a pin, or too short");
        let (head, names) = row.split_first_chunk::<9>().ok_or_else(damaged)?;
        let [VERSION, until @ ..] = *head else { return Err(damaged().into()) };
        let names = std::str::from_utf8(names).map_err(|error| Damage::record(name, error))?;
        let until = u64::from_le_bytes(until);
        Ok(Pin {
            name: name.to_owned(),
            paths: names.lines().map(base_name).collect::<Result<_>>()?,
            until: (until != NEVER).then_some(until),
        })
    }

    /// Whether it keeps anything at this second.
    fn holds(&self, now: u64) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Store {
    /// Keeps paths under a name of up to [`PIN_NAME_LEN_MAX`] bytes, in the place of what was kept under it before.
    pub fn pin(&self, pin: &Pin) -> Result<()> {
        let (mut pin, name) = (pin.clone(), pin.name.clone());
        pin.paths.sort();
        pin.paths.dedup();
        self.writer.write(false, move |txn| {
            txn.open_table(KEPT)?.insert(name.as_str(), pin.encode().as_slice())?;
            Ok(())
        })
    }

    /// Whether there was such a pin, ended or not.
    pub fn unpin(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        self.writer.write(false, move |txn| Ok(txn.open_table(KEPT)?.remove(name.as_str())?.is_some()))
    }

    /// The pins that have not ended, by name.
    pub fn pinned(&self) -> Result<Vec<Pin>> {
        let now = (self.options.clock)();
        self.index.read(|txn| holding(&txn.open_table(KEPT)?, now))
    }
}

/// The pins of a table that have not ended at this second.
pub fn holding(table: &impl ReadableTable<&'static str, &'static [u8]>, now: u64) -> Result<Vec<Pin>> {
    let mut pins = Vec::new();
    for row in table.iter()? {
        let (name, row) = row?;
        let pin = Pin::decode(name.value(), row.value())?;
        if pin.holds(now) {
            pins.push(pin);
        }
    }
    Ok(pins)
}

/// Forgets pins that have ended.
pub fn forget_ended(store: &Store) -> Result<()> {
    let now = (store.options.clock)();
    let ended: Vec<String> = store.index.read(|txn| {
        let mut ended = Vec::new();
        for row in txn.open_table(KEPT)?.iter()? {
            let (name, row) = row?;
            if !Pin::decode(name.value(), row.value())?.holds(now) {
                ended.push(name.value().to_owned());
            }
        }
        Ok(ended)
    })?;
    if ended.is_empty() {
        return Ok(());
    }
    store.writer.write(false, move |txn| {
        let mut table = txn.open_table(KEPT)?;
        for name in &ended {
            // It may have been renewed since.
            let renewed = match table.get(name.as_str())? {
                Some(row) => Pin::decode(name, row.value())?.holds(now),
                None => continue,
            };
            if !renewed {
                table.remove(name.as_str())?;
            }
        }
        Ok(())
    })
}
