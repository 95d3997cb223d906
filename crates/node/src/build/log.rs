//! From a builder's raw terminal output to log lines.

/// A line longer than this is cut into several: nothing a person reads, and the bound of what is buffered.
const LINE_BYTES_MAX: usize = 256 << 10;

/// Lines quoted in a failure message (Nix's `log-lines`).
const LAST_LINES: usize = 25;

/// Splits output at `\n`; `\r` returns to the start of the line, so that progress bars overwrite themselves.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    column: usize,
}

impl Lines {
    /// Feeds output, calling `on_line` for each line completed.
    pub fn feed(&mut self, output: &[u8], mut on_line: impl FnMut(&[u8])) {
        let mut rest = output;
        while let Some(at) = rest.iter().position(|&b| b == b'\n' || b == b'\r') {
            self.write(&rest[..at], &mut on_line);
            if rest[at] == b'\r' {
                self.column = 0;
            } else {
                self.end(&mut on_line);
            }
            rest = &rest[at + 1..];
        }
        self.write(rest, &mut on_line);
    }

    /// The unterminated last line, if there is one.
    pub fn finish(&mut self, mut on_line: impl FnMut(&[u8])) {
        if !self.line.is_empty() {
            self.end(&mut on_line);
        }
    }

    fn write(&mut self, text: &[u8], on_line: &mut impl FnMut(&[u8])) {
        for piece in text.chunks(LINE_BYTES_MAX) {
            if self.column + piece.len() > LINE_BYTES_MAX {
                self.end(on_line);
            }
            let overwritten = piece.len().min(self.line.len() - self.column);
            self.line[self.column..self.column + overwritten].copy_from_slice(&piece[..overwritten]);
            self.line.extend_from_slice(&piece[overwritten..]);
            self.column += piece.len();
        }
    }

    fn end(&mut self, on_line: &mut impl FnMut(&[u8])) {
        on_line(&self.line);
        self.line.clear();
        self.column = 0;
    }
}

/// The last lines of a log, for the failure message.
#[derive(Debug, Default)]
pub struct Tail {
    lines: std::collections::VecDeque<String>,
}

impl Tail {
    pub fn push(&mut self, line: &[u8]) {
        if self.lines.len() == LAST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(String::from_utf8_lossy(line).into_owned());
    }

    pub fn lines(&self) -> impl ExactSizeIterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines_of(pieces: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        let mut keep = |line: &[u8]| out.push(String::from_utf8_lossy(line).into_owned());
        for piece in pieces {
            lines.feed(piece, &mut keep);
        }
        lines.finish(&mut keep);
        out
    }

    #[test]
    fn carriage_return_overwrites() {
        assert_eq!(lines_of(&[b"10%\r20%\r", b"done\nlast"]), ["done", "last"]);
        assert_eq!(lines_of(&[b"longer\rsh\n\n"]), ["shnger", ""]);
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(text in "[a-c\r\n]{0,60}", at in 0usize..60) {
            let at = at.min(text.len());
            let (a, b) = text.as_bytes().split_at(at);
            prop_assert_eq!(lines_of(&[a, b]), lines_of(&[text.as_bytes()]));
        }
    }
}
