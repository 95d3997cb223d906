//! The options in front of a key: `name`, `name="value"`, joined by commas.

use super::Role;

/// OpenSSH options that forbid what no session here can do anyway, or that allow it.
const WITHOUT_EFFECT: &[&str] = &[
    "agent-forwarding",
    "no-agent-forwarding",
    "no-port-forwarding",
    "no-pty",
    "no-user-rc",
    "no-x11-forwarding",
    "port-forwarding",
    "pty",
    "restrict",
    "user-rc",
    "x11-forwarding",
];

/// OpenSSH options that bind a key to something not checked here.
const LIMITING: &[&str] = &[
    "cert-authority",
    "command",
    "expiry-time",
    "from",
    "permitlisten",
    "permitopen",
    "principals",
    "verify-required",
];

pub(super) struct Options {
    pub role: Role,
    pub tenant: Option<String>,
}

/// `name` or `name="value"`.
type RawOption = (String, Option<String>);

impl Options {
    /// `None` when the key must not be used.
    pub fn parse(list: &[RawOption], complain: &mut dyn FnMut(String)) -> Result<Option<Self>, String> {
        let mut options = Options { role: Role::Admin, tenant: None };
        for (name, value) in list {
            match (name.to_ascii_lowercase().as_str(), value) {
                ("role", Some(value)) => {
                    options.role = value
                        .parse()
                        .map_err(|()| format!("role {value:?} is none of read, push, build, admin; line ignored"))?;
                }
                ("tenant", Some(value)) if !value.is_empty() => options.tenant = Some(value.clone()),
                ("role" | "tenant", _) => return Err(format!("{name} needs a value in quotes; line ignored")),
                (name, _) if WITHOUT_EFFECT.contains(&name) => {}
                (name, _) if LIMITING.contains(&name) => {
                    complain(format!("option {name} cannot be enforced here, so this key is not let in"));
                    return Ok(None);
                }
                _ => complain(format!("unknown option {name} ignored")),
            }
        }
        Ok(Some(options))
    }
}

/// Options and the rest of the line; `None` when a quote stays open. A line without options starts with the key type.
pub(super) fn split_options(line: &str) -> Option<(Vec<RawOption>, &str)> {
    if is_key_type(line.split_whitespace().next().unwrap_or_default()) {
        return Some((Vec::new(), line));
    }
    let mut options = Vec::new();
    let mut name = String::new();
    let mut value: Option<String> = None;
    let mut chars = line.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ' ' | '\t' => {
                options.push((name, value));
                return Some((options, line[at..].trim_start()));
            }
            ',' => options.push((std::mem::take(&mut name), value.take())),
            '"' => {
                let value = value.get_or_insert_default();
                loop {
                    match chars.next()?.1 {
                        '"' => break,
                        '\\' => match chars.next()?.1 {
                            '"' => value.push('"'),
                            other => value.extend(['\\', other]),
                        },
                        other => value.push(other),
                    }
                }
            }
            '=' if value.is_none() => value = Some(String::new()),
            c => value.as_mut().unwrap_or(&mut name).push(c),
        }
    }
    options.push((name, value));
    Some((options, ""))
}

fn is_key_type(word: &str) -> bool {
    ["ssh-", "ecdsa-", "sk-ssh-", "sk-ecdsa-", "rsa-sha2-"].iter().any(|prefix| word.starts_with(prefix))
}
