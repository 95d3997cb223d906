//! Who may come in by ssh: a file in OpenSSH's format, read again when it changes.
//!
//! Before a key may stand `role="read|push|build|admin"` (admin when absent) and `tenant="..."`. OpenSSH's options
//! that take away what is not offered here anyway (`restrict`, `no-pty`, ...) are accepted in silence; a key under an
//! option that limits it in a way not known here (`from=`, `command=`, ...) is left out, because letting it in would
//! allow more than was written.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use russh::keys::{HashAlg, PublicKey};
use tracing::{info, warn};

mod line;

use crate::files::Stamp;
use line::Options;

/// A file beyond this is not a list of keys (10,000 keys with long comments).
const FILE_MAX: u64 = 4 << 20;

/// What a client may do; each may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Query and fetch.
    Read,
    /// Also upload what it can prove: signed or content-addressed paths, derivations.
    Push,
    /// Also build.
    Build,
    /// Trusted: whatever it says about a path is believed.
    Admin,
}

impl FromStr for Role {
    type Err = ();

    fn from_str(text: &str) -> Result<Role, ()> {
        Ok(match text {
            "read" => Role::Read,
            "push" => Role::Push,
            "build" => Role::Build,
            "admin" => Role::Admin,
            _ => return Err(()),
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Read => "read",
            Role::Push => "push",
            Role::Build => "build",
            Role::Admin => "admin",
        })
    }
}

/// What one key is allowed, and how to call its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub role: Role,
    pub tenant: Option<String>,
    /// The key's comment, or its fingerprint.
    pub who: String,
}

/// One parsed file: public key in SSH wire form to grant.
type Keys = HashMap<Vec<u8>, Grant>;

/// The keys of a file that may change at any time. A file that is missing, empty or without one good key changes
/// nothing: the keys of before stay.
pub struct AuthorizedKeys {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seen: Option<Stamp>,
    /// The file was so new when it was read that a later change may bear the same stamp.
    racy: bool,
    /// The bytes last read.
    text: Vec<u8>,
    keys: Arc<Keys>,
}

impl AuthorizedKeys {
    /// Reads `path`, which need not exist yet.
    pub fn open(path: impl Into<PathBuf>) -> AuthorizedKeys {
        let keys = AuthorizedKeys { path: path.into(), state: Mutex::default() };
        keys.refresh();
        keys
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_empty(&self) -> bool {
        self.current().is_empty()
    }

    /// What `key` is allowed, by the file as it is now.
    pub fn grant(&self, key: &PublicKey) -> Option<Grant> {
        self.refresh();
        self.current().get(&key.to_bytes().ok()?).cloned()
    }

    fn current(&self) -> Arc<Keys> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).keys.clone()
    }

    /// Reads the file if it changed. Costs one `stat` if it did not.
    pub fn refresh(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::of(&self.path).unwrap_or(Stamp::Missing);
        if state.seen == Some(stamp) && !state.racy {
            return;
        }
        let first = state.seen.replace(stamp).is_none();
        state.racy = stamp.is_fresh();
        match read(&self.path) {
            Ok(text) if text == state.text && !first => {}
            Ok(text) => {
                self.adopt(&mut state, &text, first);
                state.text = text;
            }
            Err(error) => {
                warn!("cannot read {}: {error}; {}", self.path.display(), if first { NOBODY } else { AS_BEFORE });
            }
        }
    }

    fn adopt(&self, state: &mut State, text: &[u8], first: bool) {
        let path = self.path.display();
        let (keys, complaints) = parse(&String::from_utf8_lossy(text));
        for Complaint { line, text } in complaints {
            warn!("{path}:{line}: {text}");
        }
        if keys.is_empty() {
            warn!("{path} holds no usable key; {}", if first { NOBODY } else { AS_BEFORE });
        } else {
            info!(keys = keys.len(), "read {path}");
            state.keys = Arc::new(keys);
        }
    }
}

const NOBODY: &str = "nobody can come in by ssh until it does";
const AS_BEFORE: &str = "the keys known so far stay allowed";

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let n = std::fs::File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut text)?;
    if n as u64 > FILE_MAX {
        return Err(io::Error::other(format!("it is longer than the {FILE_MAX} bytes that a list of keys may have")));
    }
    Ok(text)
}

#[derive(Debug, PartialEq, Eq)]
struct Complaint {
    line: usize,
    text: String,
}

fn parse(text: &str) -> (Keys, Vec<Complaint>) {
    let mut keys = Keys::new();
    let mut complaints = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut complain = |text: String| complaints.push(Complaint { line: number + 1, text });
        match parse_line(line, &mut complain) {
            // As in OpenSSH, the first line counts.
            Ok(Some((key, _))) if keys.contains_key(&key) => {
                complain("this key stands further up; line ignored".into())
            }
            Ok(Some((key, grant))) => {
                keys.insert(key, grant);
            }
            Ok(None) => {}
            Err(text) => complain(text),
        }
    }
    (keys, complaints)
}

/// The key of one line and what it is allowed; `None` for a blank, a comment and a key that is left out on purpose.
pub fn read_line(line: &str) -> Result<Option<(PublicKey, Grant)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let Some((wire, grant)) = parse_line(line, &mut |_| {})? else { return Ok(None) };
    let key = PublicKey::from_bytes(&wire).map_err(|error| error.to_string())?;
    Ok(Some((key, grant)))
}

/// `Ok(None)` for a key that was left out on purpose, after saying why.
fn parse_line(line: &str, complain: &mut dyn FnMut(String)) -> Result<Option<(Vec<u8>, Grant)>, String> {
    let (options, rest) = line::split_options(line).ok_or("a quote in the options is not closed; line ignored")?;
    let key = PublicKey::from_openssh(rest).map_err(|error| format!("not a public key ({error}); line ignored"))?;
    let wire = key.to_bytes().map_err(|error| format!("not a usable public key ({error}); line ignored"))?;
    let Options { role, tenant } = match Options::parse(&options, complain)? {
        Some(options) => options,
        None => return Ok(None),
    };
    let comment = String::from_utf8_lossy(key.comment().as_bytes()).trim().to_owned();
    let who = if comment.is_empty() { key.fingerprint(HashAlg::Sha256).to_string() } else { comment };
    Ok(Some((wire, Grant { role, tenant, who })))
}

#[cfg(test)]
mod tests;
