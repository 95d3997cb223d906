//! netrc: which login a host gets. Format: curl's, <https://everything.curl.dev/usingcurl/netrc.html>.

/// The entries of one file, in its order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Netrc {
    entries: Vec<Entry>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    /// `None` is `default`.
    machine: Option<String>,
    login: String,
    password: String,
}

impl Netrc {
    pub fn parse(text: &str) -> Netrc {
        let mut entries: Vec<Entry> = Vec::new();
        let mut words = Words { rest: text };
        while let Some(word) = words.next() {
            match word.as_str() {
                "machine" => entries.push(Entry { machine: words.next(), ..Entry::default() }),
                "default" => entries.push(Entry::default()),
                "macdef" => words.skip_macro(),
                "login" | "password" | "account" => {
                    let value = words.next().unwrap_or_default();
                    match (entries.last_mut(), word.as_str()) {
                        (Some(entry), "login") => entry.login = value,
                        (Some(entry), "password") => entry.password = value,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        Netrc { entries }
    }

    /// Login and password for `host`, of the first entry that fits; of those for `user` alone where that is given.
    pub fn login(&self, host: &str, user: Option<&str>) -> Option<(&str, &str)> {
        let fits = |entry: &&Entry| {
            entry.machine.as_ref().is_none_or(|machine| machine.eq_ignore_ascii_case(host))
                && user.is_none_or(|user| user == entry.login)
                && !(entry.login.is_empty() && entry.password.is_empty())
        };
        self.entries.iter().find(fits).map(|entry| (entry.login.as_str(), entry.password.as_str()))
    }
}

/// Splits at white space; a word in double quotes may hold any, with `\` before what is special.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// A macro ends at the first empty line.
    fn skip_macro(&mut self) {
        self.rest = self.rest.split_once("\n\n").map_or("", |(_, rest)| rest);
    }

    fn quoted(&mut self) -> String {
        let mut word = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => break,
                '\\' => word.extend(chars.next().map(|c| match c {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    other => other,
                })),
                c => word.push(c),
            }
        }
        self.rest = chars.as_str();
        word
    }
}

impl Iterator for Words<'_> {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        while self.rest.starts_with('#') {
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
        }
        if let Some(rest) = self.rest.strip_prefix('"') {
            self.rest = rest;
            return Some(self.quoted());
        }
        let (word, rest) = self.rest.split_at(self.rest.find(char::is_whitespace).unwrap_or(self.rest.len()));
        self.rest = rest;
        (!word.is_empty()).then(|| word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fitting_entry_counts() {
        let netrc = Netrc::parse(
            "# comment machine x\nmachine a.example login one password p#1\n\
             machine a.example\n\tlogin two\n\tpassword \"p \\\"2\\\"\"\n\
             macdef init\nmachine evil login x password y\n\nmachine b.example login three\n\
             default login anonymous password guest",
        );
        assert_eq!(netrc.login("A.example", None), Some(("one", "p#1")));
        assert_eq!(netrc.login("a.example", Some("two")), Some(("two", "p \"2\"")));
        assert_eq!(netrc.login("a.example", Some("four")), None);
        assert_eq!(netrc.login("b.example", None), Some(("three", "")));
        assert_eq!(netrc.login("evil", None), Some(("anonymous", "guest")));
        assert_eq!(Netrc::parse("machine x login y").login("z", None), None);
        assert_eq!(Netrc::parse("machine x").login("x", None), None);
    }

    #[test]
    fn cut_off_files_are_read_as_far_as_they_go() {
        for text in ["", "machine", "machine x login", "login y", "machine x password \"a", "\"", "\\", "# x"] {
            let _ = Netrc::parse(text).login("x", None);
        }
        assert_eq!(Netrc::parse("machine x login \"a b").login("x", None), Some(("a b", "")));
    }
}
