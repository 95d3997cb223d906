//! The two programs that an ssh client may ask for, recognised in the command line that Nix sends.

/// A session's protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `nix-daemon --stdio`: the worker protocol (`ssh-ng://`).
    Daemon,
    /// `nix-store --serve [--write]`: the serve protocol (`ssh://`, `nix-copy-closure`).
    Serve { write: bool },
}

impl Program {
    /// `None` for everything that is not one of ours. The program may have a path; other arguments (`--store X`) are
    /// ignored, because there is one store here.
    pub fn parse(command: &str) -> Option<Program> {
        let words = split_words(command)?;
        let (program, arguments) = words.split_first()?;
        let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
        match program.rsplit('/').next()? {
            "nix-daemon" if has("--stdio") => Some(Program::Daemon),
            "nix" if arguments.first()? == "daemon" && has("--stdio") => Some(Program::Daemon),
            "nix-store" if has("--serve") => Some(Program::Serve { write: has("--write") }),
            _ => None,
        }
    }
}

/// Words as a shell splits them, quotes and backslashes included; `None` where a quote stays open or the line needs a
/// shell to be understood.
fn split_words(line: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => quoted(&mut chars, word.get_or_insert_default(), '\'')?,
            '"' => quoted(&mut chars, word.get_or_insert_default(), '"')?,
            '\\' => word.get_or_insert_default().push(chars.next()?),
            ';' | '|' | '&' | '<' | '>' | '$' | '`' | '(' | ')' => return None,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

fn quoted(chars: &mut std::str::Chars<'_>, word: &mut String, quote: char) -> Option<()> {
    loop {
        match chars.next()? {
            c if c == quote => return Some(()),
            '\\' if quote == '"' => word.push(chars.next()?),
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nix_asks_for_is_understood() {
        for command in [
            "nix-daemon --stdio",
            "/run/current-system/sw/bin/nix-daemon --stdio",
            "'nix-daemon' '--stdio' '--store' 'auto'",
            "nix-daemon --stdio --store \"local?root=/a b\"",
            "nix daemon --stdio",
        ] {
            assert_eq!(Program::parse(command), Some(Program::Daemon), "{command}");
        }
        assert_eq!(Program::parse("nix-store --serve"), Some(Program::Serve { write: false }));
        assert_eq!(
            Program::parse("/nix/bin/nix-store --serve --write --store x"),
            Some(Program::Serve { write: true })
        );
    }

    #[test]
    fn nothing_else_is() {
        for command in [
            "",
            "true",
            "nix-store -r /nix/store/x",
            "nix-daemon",
            "nix-daemon --stdio; rm -rf /",
            "nix-daemon '--stdio",
            "bash -c 'nix-daemon --stdio'",
            "nix-daemon --stdio \\",
            "nix",
        ] {
            assert_eq!(Program::parse(command), None, "{command}");
        }
    }
}
