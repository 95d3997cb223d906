//! Sizes and durations as people write them.

use std::time::Duration;

use serde::{Serialize, Serializer};

const SIZE_UNITS: [(&str, u64); 14] = [
    ("", 1),
    ("B", 1),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("KB", 1_000),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
];

/// Units of a duration, in milliseconds; no unit means seconds.
const DURATION_UNITS: [(&str, u64); 6] =
    [("", 1_000), ("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Bytes from `4096`, `10G`, `1.5GiB`, `500MB`. A single letter is a power of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let bad = || format!("'{text}' is not a size; write it like 500MB, 10GiB or 4096");
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let unit = unit.trim();
    let factor = SIZE_UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?.1;
    scaled(number.trim(), factor).ok_or_else(bad)
}

/// `number` times `factor`, with up to nine decimals; `None` when it is no number or too large.
fn scaled(number: &str, factor: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let base = whole.parse::<u64>().ok()?.checked_mul(factor)?;
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(factor) / 10u128.pow(fraction.len() as u32);
    base.checked_add(u64::try_from(part).ok()?)
}

/// `None` from `none` or `0`, which Nix's settings mean by it too.
pub fn parse_optional_size(text: &str) -> Result<Option<u64>, String> {
    match text.trim() {
        "none" | "0" => Ok(None),
        text => parse_size(text).map(Some),
    }
}

pub fn size_text(bytes: u64) -> String {
    const NAMES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..NAMES.len()).rev().find(|&i| i == 0 || bytes >= 1 << (10 * i)).unwrap_or(0);
    match step {
        0 => format!("{bytes} B"),
        _ => format!("{:.1} {}", bytes as f64 / (1u64 << (10 * step)) as f64, NAMES[step]),
    }
}

/// A duration from `90`, `90s`, `1h30m`, `500ms`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let bad = || format!("'{text}' is not a duration; write it like 90s, 10m or 1h30m");
    let mut rest = text;
    let mut total_ms = 0u64;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor = DURATION_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?.1;
        let part = scaled(number, factor).ok_or_else(bad)?;
        total_ms = total_ms.checked_add(part).ok_or_else(bad)?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// `None` from `none` or `0`.
pub fn parse_optional_duration(text: &str) -> Result<Option<Duration>, String> {
    match text.trim() {
        "none" | "0" => Ok(None),
        text => parse_duration(text).map(Some),
    }
}

pub fn show_duration(duration: Duration) -> String {
    let mut left = duration.as_millis();
    let mut text = String::new();
    for (unit, ms) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        if left >= ms {
            text.push_str(&format!("{}{unit}", left / ms));
            left %= ms;
        }
    }
    if text.is_empty() { "0s".into() } else { text }
}

pub fn duration_text<S: Serializer>(duration: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&show_duration(*duration))
}

pub fn optional_duration_text<S: Serializer>(duration: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => duration_text(duration, to),
        None => to.serialize_none(),
    }
}

/// How much of the disk the store may fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quota {
    Bytes(u64),
    /// Percent of the file system that holds the data directory, 1 to 100.
    Share(u8),
}

impl Quota {
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim().strip_suffix('%') {
            Some(percent) => match percent.trim().parse::<u8>() {
                Ok(share @ 1..=100) => Ok(Quota::Share(share)),
                _ => Err(format!("'{text}' is not a share of the file system; write it like 80%")),
            },
            None => parse_size(text).map(Quota::Bytes),
        }
    }

    /// `file_system`: its size in bytes.
    pub fn bytes(self, file_system: u64) -> u64 {
        match self {
            Quota::Bytes(bytes) => bytes,
            Quota::Share(percent) => (u128::from(file_system) * u128::from(percent) / 100) as u64,
        }
    }
}

impl Serialize for Quota {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Quota::Bytes(bytes) => to.serialize_u64(*bytes),
            Quota::Share(percent) => to.collect_str(&format_args!("{percent}%")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in
            [("4096", 4096), ("1K", 1024), ("1kb", 1000), ("1.5GiB", 3 << 29), ("10 G", 10 << 30), ("2TiB", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1X", "1.", "1e3", "99999999999T", "0x10"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_may_be_composed() {
        for (text, ms) in [("90", 90_000), ("1h30m", 5_400_000), ("500ms", 500), ("1.5s", 1_500), ("2d", 172_800_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "5x", "-5s", "5 s s", "99999999999999999999s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_quota_is_bytes_or_a_share() {
        assert_eq!(Quota::parse("80%").map(|q| q.bytes(1000)), Ok(800));
        assert_eq!(Quota::parse("1K").map(|q| q.bytes(10)), Ok(1024));
        assert!(Quota::parse("0%").is_err() && Quota::parse("101%").is_err());
    }

    proptest! {
        #[test]
        fn a_shown_duration_reads_back(ms in 0u64..10_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = (parse_size(&text), parse_duration(&text), Quota::parse(&text));
        }
    }
}
