//! URLs as far as a download needs them: told apart, resolved against each other, and shown without secrets.

use std::fmt;

/// An absolute URL with an authority. `Display` gives what was written, but no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// In lower case.
    pub scheme: String,
    pub user: Option<String>,
    pub password: Option<String>,
    /// `host` or `host:port`; empty for `file:///`.
    pub authority: String,
    /// Begins with `/`, has no fragment, and only bytes that may be sent.
    pub path_and_query: String,
    shown: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        let (scheme, rest) = text.split_once("://").ok_or("URL has no scheme")?;
        if !is_scheme(scheme) {
            return Err("URL has a malformed scheme");
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let (login, authority) = authority.rsplit_once('@').map_or((None, authority), |(l, a)| (Some(l), a));
        let (user, password) = match login.map(|login| login.split_once(':').unwrap_or((login, ""))) {
            Some((user, "")) => (Some(percent_decode(user)), None),
            Some((user, password)) => (Some(percent_decode(user)), Some(percent_decode(password))),
            None => (None, None),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let shown = match password {
            Some(_) => format!("{scheme}://{}:***@{authority}{path}", user.as_deref().unwrap_or_default()),
            None => text.to_owned(),
        };
        Ok(Url {
            scheme: scheme.to_ascii_lowercase(),
            user,
            password,
            authority: authority.to_owned(),
            path_and_query: format!("{slash}{}", percent_encode(path)),
            shown,
        })
    }

    /// Where a `Location` header of a response from here leads.
    pub fn join(&self, location: &str) -> Result<Url, &'static str> {
        let location = location.split('#').next().unwrap_or(location);
        if location.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
            return self.with_login_of_same_origin(Url::parse(location)?);
        }
        let path = self.path_and_query.split('?').next().unwrap_or("/");
        let target = if let Some(other_host) = location.strip_prefix("//") {
            return self.with_login_of_same_origin(Url::parse(&format!("{}://{other_host}", self.scheme))?);
        } else if location.starts_with('/') {
            location.to_owned()
        } else if location.is_empty() {
            self.path_and_query.clone()
        } else if location.starts_with('?') {
            format!("{path}{location}")
        } else {
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            format!("{directory}/{location}")
        };
        let url = Url::parse(&format!("{}://{}{}", self.scheme, self.authority, without_dots(&target)))?;
        self.with_login_of_same_origin(url)
    }

    /// The request URI: no login, no fragment.
    pub fn request_uri(&self) -> String {
        format!("{}{}", self.origin(), self.path_and_query)
    }

    /// Scheme and authority.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme, self.authority)
    }

    /// The host alone, an IPv6 address without brackets.
    pub fn host(&self) -> &str {
        match self.authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }

    /// The file that a `file` URL names.
    pub fn file_path(&self) -> Result<Vec<u8>, &'static str> {
        match self.authority.as_str() {
            "" | "localhost" => Ok(percent_decode_bytes(self.path_and_query.split('?').next().unwrap_or("/"))),
            _ => Err("file URL names a remote host"),
        }
    }

    fn with_login_of_same_origin(&self, mut url: Url) -> Result<Url, &'static str> {
        if url.user.is_none() && url.origin() == self.origin() {
            url.user.clone_from(&self.user);
            url.password.clone_from(&self.password);
        }
        Ok(url)
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// Resolves `.` and `..` in the path, as RFC 3986 §5.2.4 has it.
fn without_dots(path_and_query: &str) -> String {
    let (path, query) = match path_and_query.find('?') {
        Some(at) => path_and_query.split_at(at),
        None => (path_and_query, ""),
    };
    let mut kept = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let dots = matches!(segment, "." | "..");
        if segment == ".." {
            kept.pop();
        }
        match dots {
            // The directory itself: its slash stays.
            true if segments.peek().is_none() => kept.push(""),
            true => {}
            false => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

/// Encodes what may not stand in a request line; what is encoded already stays.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            0..=0x20 | 0x7f.. | b'<' | b'>' | b'`' => encoded.push_str(&format!("%{byte:02X}")),
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}

fn percent_decode(text: &str) -> String {
    String::from_utf8_lossy(&percent_decode_bytes(text)).into_owned()
}

fn percent_decode_bytes(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|digits| byte == b'%' && digits.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        decoded.push(value.unwrap_or(byte));
        rest = if value.is_some() { &after[2..] } else { after };
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins_are_used_and_not_shown() {
        let url = Url::parse("HTTP://us%40er:se%3Acret@[::1]:8080/a b?q=ä#fragment").unwrap();
        assert_eq!((url.user.as_deref(), url.password.as_deref()), (Some("us@er"), Some("se:cret")));
        assert_eq!(url.request_uri(), "http://[::1]:8080/a%20b?q=%C3%A4");
        assert_eq!(url.host(), "::1");
        assert_eq!(url.to_string(), "HTTP://us@er:***@[::1]:8080/a b?q=ä");
        let plain = "https://example.org/x#y";
        assert_eq!(Url::parse(plain).unwrap().to_string(), plain);
        assert_eq!(Url::parse(plain).unwrap().request_uri(), "https://example.org/x");
    }

    #[test]
    fn locations_are_resolved_against_the_url_that_gave_them() {
        let base = Url::parse("http://u:p@h:1/a/b/c?d=/e").unwrap();
        let joined = |location: &str| base.join(location).unwrap().request_uri();
        assert_eq!(joined("g"), "http://h:1/a/b/g");
        assert_eq!(joined("./g/."), "http://h:1/a/b/g/");
        assert_eq!(joined("../../../g?y=../z"), "http://h:1/g?y=../z");
        assert_eq!(joined("../g/../x"), "http://h:1/a/x");
        assert_eq!(joined("/g#s"), "http://h:1/g");
        assert_eq!(joined("?y"), "http://h:1/a/b/c?y");
        assert_eq!(joined("//other/g"), "http://other/g");
        assert_eq!(joined("https://other/g"), "https://other/g");
        assert_eq!(joined("/r?to=http://x/"), "http://h:1/r?to=http://x/");
        assert_eq!(joined("g/http://x"), "http://h:1/a/b/g/http://x");
    }

    #[test]
    fn logins_stay_with_their_origin() {
        let base = Url::parse("http://u:p@h:1/a").unwrap();
        assert_eq!(base.join("/b").unwrap().user.as_deref(), Some("u"));
        assert_eq!(base.join("http://h:1/b").unwrap().password.as_deref(), Some("p"));
        assert_eq!(base.join("http://h:2/b").unwrap().user, None);
        assert_eq!(base.join("https://h:1/b").unwrap().user, None);
        assert_eq!(base.join("http://v@h:1/b").unwrap().user.as_deref(), Some("v"));
    }

    #[test]
    fn files_are_local() {
        assert_eq!(Url::parse("file:///a%20b%zz%+1%4").unwrap().file_path().unwrap(), b"/a b%zz%+1%4");
        Url::parse("file://elsewhere/a").unwrap().file_path().unwrap_err();
        Url::parse("/a").unwrap_err();
        Url::parse("9p://a").unwrap_err();
    }
}
