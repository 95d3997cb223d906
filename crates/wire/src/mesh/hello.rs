//! The first message of each connection of members, in each direction: who one is.
//!
//! What later versions add travels as [`Hello::extensions`], which older programs keep and do not read.

use super::certificate::Certificate;
use super::format::{Format, FormatError, within};
use super::node_record::{EXTENSION_LEN_MAX, EXTENSIONS_MAX};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Of the node whose key the connection was made with.
    pub certificate: Certificate,
    pub extensions: BTreeMap<u16, Vec<u8>>,
}

impl Hello {
    pub fn new(certificate: Certificate) -> Self {
        Self { certificate, extensions: BTreeMap::new() }
    }
}

impl Format for Hello {
    const WHAT: &'static str = "hello";
    const VERSION: u8 = 1;
    /// A certificate, and as many extensions as there may be.
    const LEN_MAX: usize = Certificate::LEN_MAX + 8 + EXTENSIONS_MAX * (EXTENSION_LEN_MAX + 8);

    fn check(&self) -> Result<(), FormatError> {
        self.certificate.check()?;
        let short = self.extensions.values().all(|value| value.len() <= EXTENSION_LEN_MAX);
        within::<Self>("extensions", self.extensions.len() <= EXTENSIONS_MAX && short)
    }
}
