//! Where a bucket is, and who this node is there.

use std::path::Path;

use anyhow::{Context, Result};

/// A file of credentials is some lines.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;
/// The section of the file that counts, as for other programs that name none.
const PROFILE: &str = "default";

/// `s3://bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    pub bucket: String,
    /// Before the names of all objects; without slashes at its ends, and empty for none.
    pub prefix: String,
}

impl Location {
    pub fn parse(url: &str) -> Result<Location, String> {
        let bad = |why: &str| format!("'{url}' is no bucket: {why}; write it like s3://bucket/prefix");
        let rest = url.strip_prefix("s3://").ok_or_else(|| bad("it does not begin with s3://"))?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if bucket.is_empty() || !bucket.chars().all(fits) {
            return Err(bad("its name has letters, digits, '-', '_' and '.'"));
        }
        let prefix = prefix.trim_matches('/');
        let is_plain = |part: &str| !part.is_empty() && !matches!(part, "." | "..") && part.chars().all(fits);
        if !prefix.is_empty() && !prefix.split('/').all(is_plain) {
            return Err(bad("parts of a prefix have letters, digits, '-', '_' and '.'"));
        }
        Ok(Location { bucket: bucket.into(), prefix: prefix.into() })
    }

    pub fn url(&self) -> String {
        match self.prefix.is_empty() {
            true => format!("s3://{}", self.bucket),
            false => format!("s3://{}/{}", self.bucket, self.prefix),
        }
    }
}

/// What signs requests.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub key_id: String,
    pub secret: String,
    pub token: Option<String>,
}

impl Credentials {
    /// Those of a file in the form that AWS's programs share.
    pub fn read(path: &Path) -> Result<Credentials> {
        let read = || -> std::io::Result<String> {
            match std::fs::metadata(path)?.len() {
                len if len > CREDENTIALS_BYTES_MAX => Err(std::io::Error::other("too large for credentials")),
                _ => std::fs::read_to_string(path),
            }
        };
        let text = read().with_context(|| format!("cannot read the bucket's credentials in {}", path.display()))?;
        Credentials::parse(&text).with_context(|| {
            format!(
                "{} holds no credentials: it is to have aws_access_key_id and aws_secret_access_key, below [default] or \
                 no section",
                path.display()
            )
        })
    }

    /// `name = value` lines before any section and in the default one.
    fn parse(text: &str) -> Option<Credentials> {
        let (mut key_id, mut secret, mut token) = (None, None, None);
        let mut counts = true;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';'])) {
            if let Some(section) = line.strip_prefix('[') {
                counts = section.trim_end_matches(']').trim() == PROFILE;
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| counts) else { continue };
            let slot = match name.trim() {
                "aws_access_key_id" => &mut key_id,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut token,
                _ => continue,
            };
            *slot = Some(value.trim().to_string());
        }
        Some(Credentials { key_id: key_id?, secret: secret?, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let whole = Location::parse("s3://my-bucket/a/b/").unwrap();
        assert_eq!((whole.bucket.as_str(), whole.prefix.as_str()), ("my-bucket", "a/b"));
        assert_eq!(whole.url(), "s3://my-bucket/a/b");
        assert_eq!(Location::parse("s3://b").unwrap().url(), "s3://b");
        for bad in ["b", "https://b", "s3://", "s3:///x", "s3://b/a//c", "s3://b/../c", "s3://a b", "s3://b/x?y=z"] {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_are_those_of_the_default_section() {
        let text = "# ours\n[other]\naws_access_key_id = no\n[default]\naws_access_key_id = me\n\
                    aws_secret_access_key=a=b\nregion = x\n[third]\naws_secret_access_key = no\n";
        let read = Credentials::parse(text).unwrap();
        assert_eq!((read.key_id.as_str(), read.secret.as_str(), read.token), ("me", "a=b", None));
        let bare =
            Credentials::parse("aws_access_key_id = me\naws_secret_access_key = s\naws_session_token = t").unwrap();
        assert_eq!(bare.token.as_deref(), Some("t"));
        assert!(Credentials::parse("[default]\naws_access_key_id = me\n").is_none());
    }

    #[test]
    fn an_unreadable_file_is_an_error_that_names_it() {
        let error = Credentials::read(Path::new("/nowhere/credentials")).err().unwrap();
        assert!(format!("{error:#}").contains("/nowhere/credentials"));
    }
}
