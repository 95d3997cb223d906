//! Tokens: who may write, or read, over HTTP.
//!
//! A token is 32 random bytes, shown once when it is made. The node keeps its SHA-256 in `<data-dir>/tokens`, one line
//! a token: digest, role, end (Unix seconds or `-`), name. With that much randomness a plain digest gives nothing away.
//! The file is read again when it changes; a token that is no longer in it, or whose time is over, opens nothing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::{constant_time, digest, rand};
use rustix::fs::{FlockOperation, flock};
use shoal_wire::nix::base32;
use shoal_wire::nix::base64::{decode_hex_into, encode_hex};

use crate::door::{Grant, Role};
use crate::files::{self, Stamp};

/// What every token begins with, so that scanners for leaked secrets can know one.
const PREFIX: &str = "shoal-";
const SECRET_LEN: usize = 32;
/// A longer text is no token and not worth a digest.
const TOKEN_LEN_MAX: usize = 256;
/// Each request is compared with all of them.
pub const TOKENS_MAX: usize = 4096;
const NAME_LEN_MAX: usize = 64;
const HEADER: &str = "# Digests of the tokens that may use this node over HTTP; edit with `shoal token`.\n";

/// What the node knows of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    digest: [u8; 32],
    pub role: Role,
    /// Unix seconds.
    pub expires: Option<u64>,
    pub name: String,
}

impl Token {
    pub fn is_over(&self) -> bool {
        self.expires.is_some_and(|end| end <= now())
    }

    fn parse(line: &str) -> Option<Token> {
        let mut fields = line.split(' ');
        let mut digest = [0; 32];
        decode_hex_into(fields.next()?.as_bytes(), &mut digest).ok()?;
        let role = fields.next()?.parse().ok()?;
        let expires = match fields.next()? {
            "-" => None,
            end => Some(end.parse().ok()?),
        };
        Some(Token { digest, role, expires, name: fields.next()?.to_owned() })
    }

    fn line(&self) -> String {
        let expires = self.expires.map_or_else(|| "-".to_owned(), |end| end.to_string());
        format!("{} {} {expires} {}\n", encode_hex(&self.digest), self.role, self.name)
    }
}

pub fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("tokens")
}

/// The tokens of the file; an absent file has none.
pub fn list(path: &Path) -> Result<Vec<Token>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    let parsed = lines.map(|(number, line)| {
        Token::parse(line).with_context(|| format!("{}:{}: not a token's digest", path.display(), number + 1))
    });
    parsed.take(TOKENS_MAX).collect()
}

/// Makes a token and returns it; it cannot be shown again.
pub fn create(path: &Path, name: &str, role: Role, ttl: Option<Duration>) -> Result<String> {
    let fits = !name.is_empty() && name.len() <= NAME_LEN_MAX && name.chars().all(|c| c.is_ascii_graphic());
    ensure!(fits, "'{name}' is no name for a token: up to {NAME_LEN_MAX} visible ASCII characters");
    let _lock = lock(path)?;
    let mut tokens = list(path)?;
    tokens.retain(|token| !token.is_over());
    ensure!(tokens.iter().all(|token| token.name != name), "there is a token '{name}'; remove it first");
    ensure!(tokens.len() < TOKENS_MAX, "there are {TOKENS_MAX} tokens already; remove some first");
    let mut secret = [0; SECRET_LEN];
    rand::fill(&mut secret).ok().context("the machine gives no random numbers for a token")?;
    let text = format!("{PREFIX}{}", base32::encode(&secret));
    let expires = ttl.map(|ttl| now().saturating_add(ttl.as_secs()));
    tokens.push(Token { digest: digest_of(&text), role, expires, name: name.to_owned() });
    write(path, &tokens)?;
    Ok(text)
}

/// Removes the token with this name, or the token itself.
pub fn remove(path: &Path, what: &str) -> Result<()> {
    let _lock = lock(path)?;
    let mut tokens = list(path)?;
    let before = tokens.len();
    let digest = digest_of(what);
    tokens.retain(|token| token.name != what && token.digest != digest);
    if tokens.len() == before {
        bail!("{} has no such token; `shoal token list` shows what it has", path.display());
    }
    write(path, &tokens)
}

/// Keeps others from changing the tokens until it is dropped. The file itself is replaced, so another one is locked.
fn lock(path: &Path) -> Result<File> {
    let path = path.with_extension("lock");
    let lock = || {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(files::SECRET).open(&path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        io::Result::Ok(file)
    };
    lock().with_context(|| format!("cannot lock {}", path.display()))
}

fn write(path: &Path, tokens: &[Token]) -> Result<()> {
    let text: String = std::iter::once(HEADER.to_owned()).chain(tokens.iter().map(Token::line)).collect();
    files::replace(path, files::SECRET, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// The tokens of a node that runs.
pub struct Tokens {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: Option<Stamp>,
    racy: bool,
    tokens: Arc<Vec<Token>>,
}

impl Tokens {
    /// Reads `path`, which need not exist yet.
    pub fn open(path: PathBuf) -> Tokens {
        Tokens { path, state: Mutex::default() }
    }

    /// What the bearer of `text` is allowed, by the file as it is now.
    pub fn grant(&self, text: &str) -> Option<Grant> {
        if text.len() > TOKEN_LEN_MAX {
            return None;
        }
        let digest = digest_of(text);
        let is = |token: &&Token| constant_time::verify_slices_are_equal(&token.digest, &digest).is_ok();
        // All are compared, so that the time says nothing of which one it was.
        let tokens = self.current();
        let found = tokens.iter().filter(is).fold(None, |_, token| Some(token))?;
        let grant = || Grant { role: found.role, tenant: None, who: format!("token {}", found.name) };
        (!found.is_over()).then(grant)
    }

    /// What the value of an `Authorization` header allows: `Bearer` with a token, or `Basic` with it as the password.
    pub fn authorize(&self, header: &str) -> Option<Grant> {
        let (scheme, value) = header.split_once(' ')?;
        let value = value.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return self.grant(value);
        }
        if !scheme.eq_ignore_ascii_case("basic") || value.len() > 2 * TOKEN_LEN_MAX {
            return None;
        }
        let decoded = String::from_utf8(shoal_wire::nix::base64::decode(value).ok()?).ok()?;
        self.grant(decoded.split_once(':')?.1)
    }

    /// A file that cannot be read leaves what was known: a disk that fails must not lock everybody out.
    fn current(&self) -> Arc<Vec<Token>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.path).unwrap_or(Stamp::Missing);
        if state.seen != Some(stamp) || state.racy {
            state.seen = Some(stamp);
            state.racy = stamp.is_fresh();
            match list(&self.path) {
                Ok(tokens) => state.tokens = Arc::new(tokens),
                Err(error) => tracing::warn!("the tokens known so far stay: {error:#}"),
            }
        }
        state.tokens.clone()
    }
}

fn digest_of(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
    bytes
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", shoal_wire::nix::base64::encode(format!("{user}:{password}").as_bytes()))
    }

    #[test]
    fn a_token_opens_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        let live = Tokens::open(path.clone());
        assert_eq!(live.grant("shoal-"), None);
        let text = create(&path, "ci", Role::Push, None).unwrap();
        let other = create(&path, "boss", Role::Admin, Some(Duration::from_secs(3600))).unwrap();
        assert!(create(&path, "ci", Role::Push, None).is_err(), "a name stands for one token");
        assert_eq!(live.grant(&text).unwrap().role, Role::Push);
        assert_eq!(live.authorize(&format!("Bearer {other}")).unwrap().role, Role::Admin);
        assert_eq!(live.authorize(&basic("anyone", &text)).unwrap().who, "token ci");
        for wrong in ["", "Bearer", "Bearer x", "Basic !!", &basic(&text, ""), &format!("Digest {text}")] {
            assert_eq!(live.authorize(wrong), None, "{wrong}");
        }
        remove(&path, "ci").unwrap();
        assert_eq!(live.grant(&text), None);
        remove(&path, &other).unwrap();
        assert_eq!(live.grant(&other), None);
        assert!(remove(&path, "ci").is_err());
    }

    #[test]
    fn changes_at_once_are_all_kept() {
        const EACH: usize = 16;
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        std::thread::scope(|scope| {
            for who in 0..6 {
                let path = &path;
                scope.spawn(move || {
                    for number in 0..EACH {
                        create(path, &format!("gone-{who}-{number}"), Role::Push, None).unwrap();
                        create(path, &format!("kept-{who}-{number}"), Role::Push, None).unwrap();
                        remove(path, &format!("gone-{who}-{number}")).unwrap();
                    }
                });
            }
        });
        let names: Vec<String> = list(&path).unwrap().into_iter().map(|token| token.name).collect();
        assert_eq!(names.len(), 6 * EACH, "{names:?}");
        assert!(names.iter().all(|name| name.starts_with("kept-")), "{names:?}");
    }

    #[test]
    fn a_token_ends_with_its_time_and_is_nowhere_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = file(dir.path());
        let text = create(&path, "short", Role::Build, Some(Duration::ZERO)).unwrap();
        assert_eq!(Tokens::open(path.clone()).grant(&text), None);
        assert!(list(&path).unwrap()[0].is_over());
        create(&path, "short", Role::Build, None).unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert!(!kept.contains(text.trim_start_matches(PREFIX)) && kept.lines().count() == 2);
    }
}
