//! One binary cache over HTTP: what it says of itself and of paths. Format: Nix's `http-binary-cache-store.cc`.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use shoal_wire::nix::narinfo::{NARINFO_LEN_MAX, NarInfo};
use shoal_wire::nix::realisation::{
    BuildTrace, BuildTraceKey, DrvOutput, JSON_LEN_MAX, Realisation, UnkeyedRealisation,
};
use shoal_wire::nix::store_path::{StoreDir, StorePath};

use super::web::{Authorities, Patience, Refusal, Web};

/// Bytes of `nix-cache-info` that are read.
const CACHE_INFO_LEN_MAX: usize = 64 << 10;
/// Longest log that is passed on: it is in memory meanwhile, and few have a hundredth of this.
pub const LOG_LEN_MAX: usize = 16 << 20;
/// How long it holds that a cache said nothing of itself.
const REFUSED_HOLD: Duration = Duration::from_secs(1);

/// Where a cache is and how it ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// Without login and parameters, with a slash at its end.
    pub base: String,
    pub login: Option<(String, String)>,
    /// Set in the configuration; otherwise the cache says it.
    pub priority: Option<u32>,
}

impl Location {
    /// `http(s)://[user:password@]host[:port]/path[?priority=N]`.
    pub fn parse(url: &str) -> Result<Location, String> {
        let bad = |why: &str| format!("'{url}' is no URL of a binary cache: {why}");
        let (scheme, rest) = url.split_once("://").ok_or_else(|| bad("it has no scheme"))?;
        if !matches!(scheme, "http" | "https") {
            return Err(bad("only http and https are known"));
        }
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, host) = match authority.rsplit_once('@') {
            Some((login, host)) => (Some(login.split_once(':').unwrap_or((login, ""))), host),
            None => (None, authority),
        };
        if host.is_empty() || url.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(bad("it names no host"));
        }
        let mut priority = None;
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match name {
                "priority" => priority = Some(value.parse().map_err(|_| bad("its priority is no number"))?),
                other => return Err(bad(&format!("the parameter '{other}' is not known here"))),
            }
        }
        let path = path.trim_matches('/');
        let slash = if path.is_empty() { "" } else { "/" };
        Ok(Location {
            base: format!("{scheme}://{host}/{path}{slash}"),
            login: login.map(|(user, password)| (user.to_string(), password.to_string())),
            priority,
        })
    }

    fn origin(&self) -> &str {
        let host = self.base.find("://").map_or(0, |at| at + 3);
        let end = self.base[host..].find('/').map_or(self.base.len(), |at| host + at + 1);
        &self.base[..end]
    }
}

/// What `nix-cache-info` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheInfo {
    pub priority: u32,
}

/// What is known of a cache: asked for until it says something, not by everybody at the same time.
#[derive(Default)]
struct Known {
    info: Option<CacheInfo>,
    refused: Option<(Instant, Refusal)>,
}

pub struct Cache {
    pub location: Location,
    pub web: Web,
    ask: Duration,
    dir: StoreDir,
    info: Mutex<Known>,
}

impl Cache {
    pub fn new(location: Location, dir: StoreDir, authorities: &Authorities, patience: Patience) -> Cache {
        let login = location.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()));
        let web = Web::new(authorities, patience, location.origin(), login);
        Cache { location, web, ask: patience.ask, dir, info: Mutex::default() }
    }

    /// What the cache says of itself. One that says nothing, or is for another store, is not used.
    pub fn info(&self) -> Result<CacheInfo, Refusal> {
        let mut known = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(info) = known.info {
            return Ok(info);
        }
        // Those who waited for this answer have it.
        if let Some((since, refusal)) = &known.refused
            && since.elapsed() < REFUSED_HOLD
        {
            return Err(refusal.clone());
        }
        let text = self.get("nix-cache-info", CACHE_INFO_LEN_MAX);
        let info = text.and_then(|text| parse_info(&self.dir, &text).map_err(Refusal::Failed));
        match &info {
            Ok(info) => known.info = Some(*info),
            Err(refusal) => known.refused = Some((Instant::now(), refusal.clone())),
        }
        info
    }

    /// The narinfo of the path with this hash part.
    pub fn narinfo(&self, hash_part: &str) -> Result<NarInfo, Refusal> {
        let text = self.get(&format!("{hash_part}.narinfo"), NARINFO_LEN_MAX)?;
        let narinfo = NarInfo::parse(&self.dir, &text).map_err(Refusal::failed)?;
        match narinfo.info.path.hash_part() == hash_part {
            true => Ok(narinfo),
            false => Err(Refusal::Failed(format!("it sent the narinfo of '{}' instead", narinfo.info.path))),
        }
    }

    /// Which path an output came out as.
    pub fn realisation(&self, id: &DrvOutput) -> Result<Realisation, Refusal> {
        let text = self.get(&format!("realisations/{}.doi", escape(&id.to_string())), JSON_LEN_MAX)?;
        let realisation = Realisation::from_json(&text).map_err(Refusal::failed)?;
        match realisation.id == *id {
            true => Ok(realisation),
            false => Err(Refusal::Failed("it sent another realisation instead".into())),
        }
    }

    /// The same, as Nix from 2.35 on keeps it: the key is in the name alone.
    pub fn build_trace(&self, key: &BuildTraceKey) -> Result<BuildTrace, Refusal> {
        let name = format!("build-trace-v2/{}/{}.doi", escape(key.drv_path.base_name()), escape(&key.output));
        let value = UnkeyedRealisation::from_json(&self.get(&name, JSON_LEN_MAX)?).map_err(Refusal::failed)?;
        Ok(BuildTrace { key: key.clone(), value })
    }

    /// The log of a derivation's build.
    pub fn log(&self, derivation: &StorePath) -> Result<Vec<u8>, Refusal> {
        self.get(&format!("log/{}", escape(derivation.base_name())), LOG_LEN_MAX)
    }

    /// The URL of a file that a narinfo names: relative to the cache, or absolute.
    pub fn file_url(&self, named: &str) -> String {
        match named.starts_with("http://") || named.starts_with("https://") {
            true => named.to_string(),
            false => format!("{}{}", self.location.base, named.trim_start_matches('/')),
        }
    }

    fn get(&self, name: &str, len_max: usize) -> Result<Vec<u8>, Refusal> {
        self.web.get(&format!("{}{name}", self.location.base), len_max, self.ask)
    }
}

/// As newer clients write names in URLs; servers decode.
fn escape(name: &str) -> String {
    name.bytes().fold(String::new(), |mut escaped, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b':' => escaped.push(byte.into()),
            // Writing to a String cannot fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
        escaped
    })
}

fn parse_info(dir: &StoreDir, text: &[u8]) -> Result<CacheInfo, String> {
    let text = std::str::from_utf8(text).map_err(|_| "nix-cache-info is no text")?;
    let mut store_dir = None;
    // What Nix assumes where a cache says nothing.
    let mut priority = 0;
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        match (name.trim(), value.trim()) {
            ("StoreDir", value) => store_dir = Some(value.to_string()),
            ("Priority", value) => priority = value.parse().map_err(|_| "its priority is no number")?,
            _ => {}
        }
    }
    match store_dir {
        None => Err("its nix-cache-info names no StoreDir; is it a binary cache?".into()),
        Some(other) if other != dir.as_str() => Err(format!("it is for Nix stores in '{other}', not '{dir}'")),
        Some(_) => Ok(CacheInfo { priority }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let parse = |url| Location::parse(url);
        let plain = parse("https://cache.example.org").unwrap();
        assert_eq!((plain.base.as_str(), plain.priority), ("https://cache.example.org/", None));
        let whole = parse("http://me:secret@host:81/a/b/?priority=7").unwrap();
        assert_eq!(whole.base, "http://host:81/a/b/");
        assert_eq!(whole.origin(), "http://host:81/");
        assert_eq!(whole.login, Some(("me".into(), "secret".into())));
        assert_eq!(whole.priority, Some(7));
        for bad in
            ["cache.example.org", "file:///x", "http://", "http://h/?priority=x", "http://h/?foo=1", "http://h h"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_cache_says_of_itself() {
        let dir = StoreDir::default();
        let info = parse_info(&dir, b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n").unwrap();
        assert_eq!(info, CacheInfo { priority: 40 });
        assert!(parse_info(&dir, b"StoreDir: /gnu/store\n").unwrap_err().contains("/gnu/store"));
        assert!(parse_info(&dir, b"<html>Welcome: to the hotel</html>").is_err());
        assert_eq!(escape("sha256:ab!out"), "sha256:ab%21out");
    }
}
