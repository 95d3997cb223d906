//! Messages in a builder's output.

use proptest::prelude::*;
use shoal_wire::nix::log::{
    ActivityResult, ActivityType, BuilderMessage, Field, ResultType, StartActivity, parse_builder_line,
};

#[test]
fn builders_speak_json() {
    let parse = |json: &str| parse_builder_line(format!("@nix {json}").as_bytes());
    assert_eq!(
        parse(r#"{"action":"setPhase","phase":"buildPhase"}"#),
        Some(BuilderMessage::SetPhase("buildPhase".into()))
    );
    assert_eq!(
        parse(
            r#"{"action":"start","id":1,"level":3,"type":101,"text":"downloading 'x'","fields":["x",7],"extra":null}"#
        ),
        Some(BuilderMessage::Start(StartActivity {
            id: 1,
            level: 3,
            kind: ActivityType::FILE_TRANSFER,
            text: b"downloading 'x'".to_vec(),
            fields: vec![Field::from("x"), Field::from(7)],
            parent: 0,
        }))
    );
    assert_eq!(
        parse(r#"{"action":"result","id":1,"type":105,"fields":[1,2,0,0]}"#),
        Some(BuilderMessage::Result(ActivityResult {
            id: 1,
            kind: ResultType::PROGRESS,
            fields: [1, 2, 0, 0].map(Field::Number).into(),
        }))
    );
    assert_eq!(parse(r#"{"action":"stop","id":1}"#), Some(BuilderMessage::Stop { id: 1 }));
    assert_eq!(
        parse(r#"{"action":"msg","level":1,"msg":"careful"}"#),
        Some(BuilderMessage::Message { level: 1, text: "careful".into() })
    );
}

#[test]
fn anything_else_is_output() {
    for line in [
        "",
        "building",
        "@nix",
        "@nix ",
        "@nix {}",
        " @nix {\"action\":\"stop\",\"id\":1}",
        "@nix {\"action\":\"stop\"}",
        "@nix {\"action\":\"stop\",\"id\":-1}",
        "@nix {\"action\":\"dance\",\"id\":1}",
        "@nix {\"action\":\"result\",\"id\":1,\"type\":101,\"fields\":[[]]}",
        "@nix {\"action\":\"setPhase\",\"phase\":1}",
    ] {
        assert_eq!(parse_builder_line(line.as_bytes()), None, "{line}");
    }
    let long = format!("@nix {{\"action\":\"setPhase\",\"phase\":\"{}\"}}", "x".repeat(2 << 20));
    assert_eq!(parse_builder_line(long.as_bytes()), None);
    let deep = format!("@nix {{\"action\":\"stop\",\"id\":1,\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(parse_builder_line(deep.as_bytes()), None);
}

proptest! {
    #[test]
    fn no_line_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), json in "\\{[\"a-z:,0-9\\[\\]{}]{0,60}\\}") {
        let prefixed = [b"@nix ", bytes.as_slice()].concat();
        parse_builder_line(&prefixed);
        parse_builder_line(format!("@nix {json}").as_bytes());
    }
}
