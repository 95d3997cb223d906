//! Settings that a client sends (op 19). Over ssh none come: the node's own hold.

use std::time::Duration;

use shoal_wire::nix::worker::ops::SetOptions;

use crate::build::request::BuildOptions;

/// Settings that every client may change, as in Nix; here most of them have no meaning.
const FREE: &[&str] =
    &["timeout", "build-timeout", "max-silent-time", "build-max-silent-time", "build-poll-interval", "connect-timeout"];
/// Settings that Nix's daemon leaves aside for everybody, without a word.
const SILENT: &[&str] = &["experimental-features", "extra-experimental-features", "plugin-files", "substituters"];

/// What the client wants, and warnings for it.
pub fn apply(set: &SetOptions, trusted: bool) -> (BuildOptions, Vec<String>) {
    let mut options = BuildOptions {
        keep_failed: Some(set.keep_failed),
        keep_going: Some(set.keep_going),
        max_silent: seconds(set.max_silent_time),
        substitute: Some(set.use_substitutes),
        // The client's default; it means "whatever you have".
        cores: (set.build_cores != 0).then_some(set.build_cores),
        ..BuildOptions::default()
    };
    let mut warnings = Vec::new();
    for (name, value) in &set.overrides {
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        let name = name.as_ref();
        if !trusted && !FREE.contains(&name) {
            let builders_off = name == "builders" && value.trim().is_empty();
            if !builders_off && !SILENT.contains(&name) {
                warnings.push(format!(
                    "ignoring the client-specified setting '{name}', because it is a restricted setting and you are \
                     not a trusted user"
                ));
            }
            continue;
        }
        if let Err(expected) = apply_one(&mut options, name, value.trim()) {
            warnings.push(format!("setting '{name}' has the invalid value '{value}', it should be {expected}"));
        }
    }
    (options, warnings)
}

/// Unknown names are nothing to us: clients send every setting that their user changed. Error: what was expected.
fn apply_one(options: &mut BuildOptions, name: &str, value: &str) -> Result<(), &'static str> {
    let number = || value.parse::<u64>().map_err(|_| "a whole number");
    let flag = || match value {
        "true" | "yes" | "1" => Ok(true),
        "false" | "no" | "0" => Ok(false),
        _ => Err("true or false"),
    };
    match name {
        "timeout" | "build-timeout" => options.timeout = seconds(number()?),
        "max-silent-time" | "build-max-silent-time" => options.max_silent = seconds(number()?),
        "max-build-log-size" => options.max_log_bytes = Some(number()?).filter(|&bytes| bytes > 0),
        "cores" => options.cores = Some(number()?),
        "keep-going" => options.keep_going = Some(flag()?),
        "substitute" | "build-use-substitutes" => options.substitute = Some(flag()?),
        "keep-failed" => options.keep_failed = Some(flag()?),
        _ => {}
    }
    Ok(())
}

/// Ten years: longer than any build, and clocks can count it.
const SECONDS_MAX: u64 = 10 * 366 * 24 * 3600;

/// 0 is no limit of the client's own.
pub fn seconds(value: u64) -> Option<Duration> {
    (value > 0).then(|| Duration::from_secs(value.min(SECONDS_MAX)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn set(overrides: &[(&str, &str)]) -> SetOptions {
        SetOptions {
            keep_failed: false,
            keep_going: true,
            try_fallback: false,
            verbosity: 3,
            max_build_jobs: 1,
            max_silent_time: 0,
            verbose_build: true,
            build_cores: 0,
            use_substitutes: true,
            overrides: overrides
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect::<BTreeMap<_, _>>(),
        }
    }

    #[test]
    fn a_trusted_client_sets_what_there_is_to_set() {
        let (options, warnings) = apply(&set(&[("timeout", "7"), ("cores", "2"), ("pure-eval", "true")]), true);
        assert_eq!(warnings, [] as [&str; 0]);
        let expected = BuildOptions {
            keep_failed: Some(false),
            keep_going: Some(true),
            substitute: Some(true),
            timeout: Some(Duration::from_secs(7)),
            cores: Some(2),
            ..BuildOptions::default()
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn others_may_set_limits_and_are_told_of_the_rest() {
        let overrides = [("timeout", "7"), ("cores", "64"), ("builders", ""), ("experimental-features", "flakes")];
        let (options, warnings) = apply(&set(&overrides), false);
        assert_eq!((options.timeout, options.cores), (Some(Duration::from_secs(7)), None));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("'cores'"), "{warnings:?}");
    }

    #[test]
    fn a_value_that_makes_no_sense_is_named() {
        let (options, warnings) = apply(&set(&[("timeout", "soon")]), true);
        assert_eq!(options.timeout, None);
        assert_eq!(warnings, ["setting 'timeout' has the invalid value 'soon', it should be a whole number"]);
    }
}
