//! Lines of a builder's output that are messages: `@nix {"action":…}`.

use super::{ActivityResult, ActivityType, Field, ResultType, StartActivity};
use serde::Deserialize;

/// What such a line begins with.
pub const PREFIX: &[u8] = b"@nix ";

/// Longest line that is parsed; longer ones are ordinary output.
const LINE_LEN_MAX: usize = 1 << 20;

/// What a builder says by a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuilderMessage {
    /// The ids are the builder's own.
    Start(StartActivity),
    Stop {
        id: u64,
    },
    Result(ActivityResult),
    SetPhase(String),
    Message {
        level: u64,
        text: String,
    },
}

#[derive(Deserialize)]
#[serde(tag = "action", rename_all = "camelCase")]
enum Line {
    Start {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        level: u64,
        text: String,
        #[serde(default)]
        fields: Vec<JsonField>,
        #[serde(default)]
        parent: u64,
    },
    Stop {
        id: u64,
    },
    Result {
        id: u64,
        #[serde(rename = "type")]
        kind: u64,
        #[serde(default)]
        fields: Vec<JsonField>,
    },
    SetPhase {
        phase: String,
    },
    Msg {
        level: u64,
        msg: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum JsonField {
    Number(u64),
    Text(String),
}

impl From<JsonField> for Field {
    fn from(field: JsonField) -> Self {
        match field {
            JsonField::Number(number) => Field::Number(number),
            JsonField::Text(text) => Field::Text(text.into()),
        }
    }
}

/// The message in a line, given without its newline; `None` if it is ordinary output.
pub fn parse_builder_line(line: &[u8]) -> Option<BuilderMessage> {
    let json = line.strip_prefix(PREFIX)?;
    if json.len() > LINE_LEN_MAX {
        return None;
    }
    let all = |fields: Vec<JsonField>| fields.into_iter().map(Field::from).collect();
    Some(match serde_json::from_slice(json).ok()? {
        Line::Start { id, kind, level, text, fields, parent } => BuilderMessage::Start(StartActivity {
            id,
            level,
            kind: ActivityType(kind),
            text: text.into(),
            fields: all(fields),
            parent,
        }),
        Line::Stop { id } => BuilderMessage::Stop { id },
        Line::Result { id, kind, fields } => {
            BuilderMessage::Result(ActivityResult { id, kind: ResultType(kind), fields: all(fields) })
        }
        Line::SetPhase { phase } => BuilderMessage::SetPhase(phase),
        Line::Msg { level, msg } => BuilderMessage::Message { level, text: msg },
    })
}
