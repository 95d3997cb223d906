//! How a node goes without loss: who operates the mesh asks it to, and it says how far it is.
//!
//! Both are parts of node records, so they are signed, reach everybody, and are said for as long as they hold: an order
//! that is not in its author's record any more is none.

use super::format::{Format, FormatError, encode, within};
use super::node_record::{EXTENSION_LEN_MAX, Extension, NAME_LEN_MAX, is_word};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most groups of nodes that orders are given to at once; all of one author have room in an extension.
pub const GROUPS_MAX: usize = 8;

/// Nodes that its author, which needs the role [`super::certificate::Roles::OPERATE`], asks to drain: of each group of
/// nodes that are called `GROUP-NUMBER`, those from a number on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainOrders(BTreeMap<String, u32>);

impl DrainOrders {
    /// As many as there is room for; who is left out is not asked.
    pub fn new(groups: impl IntoIterator<Item = (String, u32)>) -> Self {
        let mut orders = DrainOrders::default();
        for (group, first) in groups {
            let before = orders.0.insert(group.clone(), first);
            if orders.check().is_err() || encode(&orders).len() > Self::LEN_MAX {
                match before {
                    Some(before) => drop(orders.0.insert(group, before)),
                    None => drop(orders.0.remove(&group)),
                }
            }
        }
        orders
    }

    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a node of this name is asked.
    pub fn ask(&self, name: &str) -> bool {
        number(name).is_some_and(|(group, number)| self.0.get(group).is_some_and(|first| number >= *first))
    }
}

/// Group and number of a node that has one in its name, in the one way to write it.
pub fn number(name: &str) -> Option<(&str, u32)> {
    let (group, number) = name.rsplit_once('-')?;
    let parsed: u32 = number.parse().ok()?;
    (parsed.to_string() == number).then_some((group, parsed))
}

impl Format for DrainOrders {
    const WHAT: &'static str = "orders to drain";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = EXTENSION_LEN_MAX;

    fn check(&self) -> Result<(), FormatError> {
        within::<Self>("groups", self.0.len() <= GROUPS_MAX && self.0.keys().all(|name| is_word(name, NAME_LEN_MAX)))
    }
}

impl Extension for DrainOrders {
    const NUMBER: u16 = 2;
}

/// What a draining node still has that nobody else does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remaining {
    /// Builds that run here or that clients of this node wait for.
    pub builds: u32,
    /// Paths that are not known to be on as many other nodes as they should be.
    pub paths: u64,
}

impl Remaining {
    pub fn is_none(&self) -> bool {
        *self == Remaining::default()
    }
}

impl Format for Remaining {
    const WHAT: &'static str = "what a draining node has left";
    const VERSION: u8 = 1;
    const LEN_MAX: usize = 24;

    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }
}

impl Extension for Remaining {
    const NUMBER: u16 = 3;
}
