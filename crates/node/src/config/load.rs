//! Layers of configuration, read through the table of keys.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::flags::ConfigFlags;
use super::key::{KEYS, Key, Set};
use super::nearest::nearest;
use super::{Config, DEFAULT_FILE};

/// A larger file is a mistake.
const MAX_FILE_BYTES: u64 = 1 << 20;
const PREFIX: &str = "SHOAL_";
/// Variables that are ours without being keys.
const OTHER_VARIABLES: [&str; 1] = ["SHOAL_CONFIG"];

/// Where a setting was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Default,
    File { path: PathBuf, line: usize },
    Environment(String),
    Flag(&'static str),
}

#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    /// By key path; keys that nobody set are absent.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was read, if one was there.
    pub file: Option<PathBuf>,
}

/// One thing wrong with the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub origin: Origin,
    pub key: String,
    pub message: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Environment(variable) => write!(f, "${variable}"),
            Origin::Flag(flag) => write!(f, "--{flag}"),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Flag(flag) if *flag == self.key => write!(f, "--{flag}: {}", self.message),
            origin if self.key.is_empty() => write!(f, "{origin}: {}", self.message),
            origin => write!(f, "{origin}: {}: {}", self.key, self.message),
        }
    }
}

/// Reads every layer and reports everything that is wrong with any of them. `file`: the one that was asked for;
/// `$SHOAL_CONFIG` or [`DEFAULT_FILE`] otherwise.
pub fn load(
    file: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    flags: &ConfigFlags,
) -> Result<Loaded, Vec<ConfigError>> {
    let environment: BTreeMap<String, String> =
        environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    let mut layers = Layers { config: Config::detected(), origins: BTreeMap::new(), errors: Vec::new() };
    let wanted = file.map(Path::to_path_buf).or_else(|| environment.get("SHOAL_CONFIG").map(PathBuf::from));
    let path = wanted.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let file = match read_file(&path) {
        Ok(text) => {
            layers.file(&path, &text);
            Some(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && wanted.is_none() => None,
        Err(error) => {
            layers.error(Origin::File { path, line: 1 }, "", format!("cannot be read: {error}"));
            None
        }
    };
    layers.environment(&environment);
    for (key, values) in &flags.given {
        layers.set(key, Origin::Flag(key.flag), values.clone());
    }
    layers.config.settle();
    layers.pairs();
    match layers.errors.is_empty() {
        true => Ok(Loaded { config: layers.config, origins: layers.origins, file }),
        false => Err(layers.errors),
    }
}

fn read_file(path: &Path) -> io::Result<String> {
    match fs::metadata(path)?.len() {
        len if len > MAX_FILE_BYTES => Err(io::Error::other(format!("{len} bytes are too many"))),
        _ => fs::read_to_string(path),
    }
}

struct Layers {
    config: Config,
    origins: BTreeMap<String, Origin>,
    errors: Vec<ConfigError>,
}

impl Layers {
    fn error(&mut self, origin: Origin, key: &str, message: String) {
        self.errors.push(ConfigError { origin, key: key.into(), message });
    }

    fn set(&mut self, key: &Key, origin: Origin, values: Vec<String>) {
        match key.apply(&mut self.config, values) {
            Ok(()) => drop(self.origins.insert(key.path(), origin)),
            Err(message) => self.error(origin, &key.path(), message),
        }
    }

    /// Keys that mean something only together.
    fn pairs(&mut self) {
        let (given, lacking) = match (&self.config.http_certificate, &self.config.http_key) {
            (Some(_), None) => ("http-certificate", "http-key"),
            (None, Some(_)) => ("http-key", "http-certificate"),
            (None, None) if self.config.http3 => ("http3", "http-certificate"),
            _ if self.config.cold_last_copies && self.config.cold.is_none() => ("cold-last-copies", "cold"),
            _ => return,
        };
        let origin = self.origins.get(given).cloned().unwrap_or(Origin::Default);
        self.error(origin, given, format!("means nothing without '{lacking}'; both are needed"));
    }

    fn file(&mut self, path: &Path, text: &str) {
        let at = |offset: usize| {
            let line = text.get(..offset).unwrap_or(text).matches('\n').count() + 1;
            Origin::File { path: path.to_path_buf(), line }
        };
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let offset = error.span().map_or(0, |span| span.start);
                return self.error(at(offset), "", error.message().to_string());
            }
        };
        self.table("", table.get_ref(), &at);
        self.errors.sort_by_key(|error| match error.origin {
            Origin::File { line, .. } => line,
            _ => usize::MAX,
        });
    }

    fn table(&mut self, section: &str, table: &DeTable<'_>, at: &dyn Fn(usize) -> Origin) {
        for (name, value) in table {
            let origin = at(name.span().start);
            let name: &str = name.get_ref();
            let path = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
            let is_section = section.is_empty() && KEYS.iter().any(|key| key.section == name);
            match (value.get_ref(), KEYS.iter().find(|key| key.path() == path)) {
                (DeValue::Table(inner), _) if is_section => self.table(name, inner, at),
                (_, None) => {
                    let known: Vec<String> = KEYS.iter().map(Key::path).collect();
                    self.error(origin, &path, unknown("key", &path, known.iter().map(String::as_str)));
                }
                (value, Some(key)) => match texts(value, &key.set) {
                    Ok(values) => self.set(key, origin, values),
                    Err(message) => self.error(origin, &path, message),
                },
            }
        }
    }

    fn environment(&mut self, environment: &BTreeMap<String, String>) {
        for (name, value) in environment {
            let origin = Origin::Environment(name.clone());
            match KEYS.iter().find(|key| key.variable() == *name) {
                Some(key) => {
                    let words = || value.split([',', ' ', '\n']).filter(|v| !v.is_empty()).map(String::from);
                    let values = if matches!(key.set, Set::Many(..)) { words().collect() } else { vec![value.clone()] };
                    self.set(key, origin, values);
                }
                None if OTHER_VARIABLES.contains(&name.as_str()) || is_service_link(name) => {}
                None => {
                    let known: Vec<String> = KEYS.iter().map(Key::variable).collect();
                    self.error(origin, "", unknown("variable", name, known.iter().map(String::as_str)));
                }
            }
        }
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl Iterator<Item = &'a str>) -> String {
    match nearest(name, known) {
        Some(near) => format!("unknown {what}; did you mean '{near}'?"),
        None => format!("unknown {what}; `shoal serve --help` lists them"),
    }
}

/// Kubernetes gives every pod variables like these for a Service named `shoal`.
fn is_service_link(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or(name);
    rest.ends_with("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest == "PORT"
        || rest.contains("PORT_") && (rest.contains("_TCP") || rest.contains("_UDP"))
        || rest.ends_with("_PORT")
}

/// The texts of a TOML value, if it is of the kind that the key wants.
fn texts(value: &DeValue<'_>, set: &Set) -> Result<Vec<String>, String> {
    match (value, set) {
        (DeValue::Boolean(switch), Set::Switch(_)) => Ok(vec![switch.to_string()]),
        (_, Set::Switch(_)) => Err(format!("must be true or false, not a {}", value.type_str())),
        (DeValue::Array(values), Set::Many(..)) => values.iter().map(|value| scalar(value.get_ref())).collect(),
        (value, _) => scalar(value).map(|text| vec![text]),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_string()),
        DeValue::Float(number) => Ok(number.as_str().to_string()),
        other => Err(format!("cannot be a {}", other.type_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn with(file: &str, environment: &[(&str, &str)], flags: ConfigFlags) -> Result<Loaded, Vec<ConfigError>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, file).unwrap();
        let pairs = environment.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let mut result = load(Some(&path), pairs, &flags);
        if let Err(errors) = &mut result {
            for error in errors {
                if let Origin::File { path, .. } = &mut error.origin {
                    *path = "config.toml".into();
                }
            }
        }
        result
    }

    fn errors(file: &str, environment: &[(&str, &str)], expected: Expect) {
        let errors = with(file, environment, ConfigFlags::default()).unwrap_err();
        expected.assert_eq(&errors.iter().map(|error| format!("{error}\n")).collect::<String>());
    }

    #[test]
    fn the_later_layer_wins() {
        let file = "max-jobs = 3\ncores = 3\nname = 'file'\n[log]\nlevel = 'debug'\n";
        let environment = [("SHOAL_CORES", "4"), ("SHOAL_NAME", "env"), ("SHOAL_FEATURE", "a, b c")];
        let loaded = with(file, &environment, ConfigFlags::default().with("name", "flag")).unwrap();
        let config = &loaded.config;
        assert_eq!((config.max_jobs, config.cores, config.name.as_str()), (3, 4, "flag"));
        assert_eq!(config.feature, ["a", "b", "c"]);
        assert_eq!(config.log.level, "debug");
        assert_eq!(loaded.origins["name"], Origin::Flag("name"));
        assert_eq!(loaded.origins["cores"], Origin::Environment("SHOAL_CORES".into()));
        assert!(matches!(&loaded.origins["max-jobs"], Origin::File { line: 1, .. }));
        assert!(!loaded.origins.contains_key("timeout"));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_its_line_and_the_nearest_key() {
        errors(
            "name = 'a'\n\nmaxjobs = 2\n[log]\nlevle = 'info'\n[sandbox]\nx = 1\n",
            &[("SHOAL_MAX_JOB", "1")],
            expect![[r#"
                config.toml:3: maxjobs: unknown key; did you mean 'max-jobs'?
                config.toml:5: log.levle: unknown key; did you mean 'log.level'?
                config.toml:6: sandbox: unknown key; did you mean 'sandbox-shell'?
                $SHOAL_MAX_JOB: unknown variable; did you mean 'SHOAL_MAX_JOBS'?
            "#]],
        );
    }

    #[test]
    fn a_bad_value_is_an_error_that_says_how_to_write_it() {
        errors(
            "ssh = 'here'\nmax-jobs = 0\nno-build = 'x'\nname = [1]\ntimeout = '5 apples'\nstore-quota = '200%'\n",
            &[("SHOAL_REQUIRE_SIGS", "maybe")],
            expect![[r#"
                config.toml:1: ssh: 'here' is not an address to listen on; write it like [::]:2222, 127.0.0.1:0 or none
                config.toml:2: max-jobs: '0' is not a number of at least 1
                config.toml:3: no-build: must be true or false, not a string
                config.toml:4: name: cannot be a array
                config.toml:5: timeout: '5 apples' is not a duration; write it like 90s, 10m or 1h30m
                config.toml:6: store-quota: '200%' is not a share of the file system; write it like 80%
                $SHOAL_REQUIRE_SIGS: require-sigs: 'maybe' is neither true nor false
            "#]],
        );
    }

    #[test]
    fn what_means_something_only_together_is_given_together() {
        errors(
            "\nhttp-certificate = 'c.pem'\n",
            &[],
            expect![[r#"
                config.toml:2: http-certificate: means nothing without 'http-key'; both are needed
            "#]],
        );
        errors(
            "",
            &[("SHOAL_HTTP_KEY", "/k.pem")],
            expect![[r#"
                $SHOAL_HTTP_KEY: http-key: means nothing without 'http-certificate'; both are needed
            "#]],
        );
        errors(
            "http3 = true\n",
            &[],
            expect![[r#"
                config.toml:1: http3: means nothing without 'http-certificate'; both are needed
            "#]],
        );
        errors(
            "cold-last-copies = true\n",
            &[],
            expect![[r#"
                config.toml:1: cold-last-copies: means nothing without 'cold'; both are needed
            "#]],
        );
        assert!(with("http-certificate = 'none'\n", &[("SHOAL_HTTP_KEY", "none")], ConfigFlags::default()).is_ok());
    }

    #[test]
    fn what_is_no_toml_is_an_error_with_its_line() {
        let errors = with("a = 1\nb = \n", &[], ConfigFlags::default()).unwrap_err();
        assert!(matches!(errors[0].origin, Origin::File { line: 2, .. }), "{errors:?}");
    }

    #[test]
    fn a_file_that_was_asked_for_must_be_there() {
        let errors = load(Some(Path::new("/no/such/file")), [], &ConfigFlags::default()).unwrap_err();
        assert!(errors[0].to_string().starts_with("/no/such/file:1: cannot be read"), "{}", errors[0]);
    }

    #[test]
    fn variables_of_a_service_named_shoal_are_not_keys() {
        let links = ["SHOAL_SERVICE_HOST", "SHOAL_SERVICE_PORT_HTTP", "SHOAL_PORT", "SHOAL_PORT_8080_TCP_ADDR"];
        let pairs: Vec<_> = links.map(|name| (name, "10.0.0.1")).into();
        assert!(with("", &pairs, ConfigFlags::default()).is_ok());
    }

    #[test]
    fn paths_hang_on_the_data_directory() {
        let flags = ConfigFlags::default().with("data-dir", "/x").with("socket", "/run/s");
        let config = with("", &[], flags).unwrap().config;
        assert_eq!(config.authorized_keys, Path::new("/x/authorized_keys"));
        assert_eq!(config.socket, Path::new("/run/s"));
    }
}
