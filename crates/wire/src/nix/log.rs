//! Nix's log: verbosity, activities and their results, and the `@nix` lines that a builder may print.
//! Source: `libutil/logging.hh`, `logging.cc`.

mod builder;

pub use builder::{BuilderMessage, PREFIX, parse_builder_line};

use crate::nix::proto::number_enum;

number_enum! {
    /// How important a message is; lower is more.
    Verbosity ("verbosity level") {
        Error = 0,
        Warn = 1,
        Notice = 2,
        Info = 3,
        Talkative = 4,
        Chatty = 5,
        Debug = 6,
        Vomit = 7,
    }
}

/// What an activity is about. Peers may use numbers that have no name here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActivityType(pub u64);

impl ActivityType {
    pub const UNKNOWN: Self = Self(0);
    /// Fields: path, source URI, destination URI.
    pub const COPY_PATH: Self = Self(100);
    /// Fields: URI.
    pub const FILE_TRANSFER: Self = Self(101);
    pub const REALISE: Self = Self(102);
    pub const COPY_PATHS: Self = Self(103);
    pub const BUILDS: Self = Self(104);
    /// Fields: derivation path, machine name, 1, 1. Clients read the first two without asking.
    pub const BUILD: Self = Self(105);
    pub const OPTIMISE_STORE: Self = Self(106);
    pub const VERIFY_PATHS: Self = Self(107);
    /// Fields: path, substituter URI.
    pub const SUBSTITUTE: Self = Self(108);
    /// Fields: path, substituter URI.
    pub const QUERY_PATH_INFO: Self = Self(109);
    /// Fields: derivation path.
    pub const POST_BUILD_HOOK: Self = Self(110);
    pub const BUILD_WAITING: Self = Self(111);
    pub const FETCH_TREE: Self = Self(112);
}

/// What a result of an activity says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResultType(pub u64);

impl ResultType {
    /// Fields: bytes, blocks.
    pub const FILE_LINKED: Self = Self(100);
    /// Fields: one line of a builder's output, without newline.
    pub const BUILD_LOG_LINE: Self = Self(101);
    /// Fields: path.
    pub const UNTRUSTED_PATH: Self = Self(102);
    /// Fields: path.
    pub const CORRUPTED_PATH: Self = Self(103);
    /// Fields: phase name.
    pub const SET_PHASE: Self = Self(104);
    /// Fields: done, expected, running, failed.
    pub const PROGRESS: Self = Self(105);
    /// Fields: activity type, expected.
    pub const SET_EXPECTED: Self = Self(106);
    /// Fields: one line, without newline.
    pub const POST_BUILD_LOG_LINE: Self = Self(107);
    /// Fields: text.
    pub const FETCH_STATUS: Self = Self(108);
}

/// A value that an activity or a result carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Field {
    Number(u64),
    /// Need not be UTF-8: builders print what they like.
    Text(Vec<u8>),
}

impl From<u64> for Field {
    fn from(number: u64) -> Self {
        Field::Number(number)
    }
}

impl From<&str> for Field {
    fn from(text: &str) -> Self {
        Field::Text(text.into())
    }
}

impl From<String> for Field {
    fn from(text: String) -> Self {
        Field::Text(text.into())
    }
}

impl From<&[u8]> for Field {
    fn from(text: &[u8]) -> Self {
        Field::Text(text.into())
    }
}

impl From<Vec<u8>> for Field {
    fn from(text: Vec<u8>) -> Self {
        Field::Text(text)
    }
}

/// An activity begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartActivity {
    /// Unique among all activities that one client sees.
    pub id: u64,
    /// The number of a [`Verbosity`]; peers send others.
    pub level: u64,
    pub kind: ActivityType,
    pub text: Vec<u8>,
    pub fields: Vec<Field>,
    /// The activity that this is part of, or 0.
    pub parent: u64,
}

/// Something about a running activity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActivityResult {
    pub id: u64,
    pub kind: ResultType,
    pub fields: Vec<Field>,
}
