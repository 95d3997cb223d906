//! NAR bytes to events, pushed in pieces of any size.
//!
//! The grammar leaves few choices, so the parser alternates between matching fixed byte blocks and
//! reading the few strings that vary. Invariants:
//! - `offset` counts the bytes consumed, and every byte is looked at once;
//! - file contents go to the sink as sub-slices of the input and are never copied;
//! - memory is bounded by depth x name length, whatever the input announces;
//! - nothing is consumed past the root's closing parenthesis.

use super::{
    CLOSE, EXECUTABLE_CONTENTS, NAME, NODE, NarError, NarLimits, NarSink, OFFSET_MAX, START, TARGET, check_name,
    check_target,
};

/// Longest of the tags that leave a choice: `executable`, `directory`, `contents`, `symlink`.
const TAG_LEN_MAX: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Matching a fixed block, of which `at` bytes are seen; then goes on as `Then` says.
    Fixed(Fixed, usize),
    /// Reading a length and a string into `text`.
    Text(Text),
    /// Reading the length of file contents.
    Size,
    /// Passing contents on; this many are left.
    Contents(u64),
    /// This many zero bytes are left, after a string or after contents.
    Padding(u8, Padded),
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fixed {
    Start,
    Name,
    Node,
    Executable,
    Target,
    /// The `)` of a file or symlink.
    CloseNode,
    /// The `)` of a directory entry.
    CloseEntry,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Kind,
    RegularTag,
    DirectoryTag,
    Name,
    Target,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Padded {
    Text(Text),
    Contents,
}

impl Fixed {
    fn block(self) -> &'static [u8] {
        match self {
            Fixed::Start => &START,
            Fixed::Name => &NAME,
            Fixed::Node => &NODE,
            Fixed::Executable => &EXECUTABLE_CONTENTS,
            Fixed::Target => &TARGET,
            Fixed::CloseNode | Fixed::CloseEntry => &CLOSE,
        }
    }

    fn expected(self) -> &'static str {
        match self {
            Fixed::Start => "the NAR magic",
            Fixed::Name => "\"(\" \"name\"",
            Fixed::Node => "\"node\" \"(\" \"type\"",
            Fixed::Executable => "an empty executable marker and \"contents\"",
            Fixed::Target => "\"target\"",
            Fixed::CloseNode | Fixed::CloseEntry => "\")\"",
        }
    }
}

impl Text {
    fn expected(self) -> &'static str {
        match self {
            Text::Kind => "\"regular\", \"directory\" or \"symlink\"",
            Text::RegularTag => "\"executable\" or \"contents\"",
            Text::DirectoryTag => "\"entry\" or \")\"",
            Text::Name => "a file name",
            Text::Target => "a symlink target",
        }
    }
}

/// The parser's whole state between two pieces of input.
#[derive(Debug, Clone)]
pub struct NarParser {
    limits: NarLimits,
    state: State,
    offset: u64,
    /// Up to 8 bytes of a length that is not complete yet.
    length: [u8; 8],
    length_at: usize,
    /// Length of `text` once complete; meaningful while `length_at` is 8.
    text_len: usize,
    text: Vec<u8>,
    executable: bool,
    /// Name of the node whose kind is read next; empty for the root.
    name: Vec<u8>,
    /// For each open directory the last name seen in it, end to end, and where each starts.
    last_names: Vec<u8>,
    open: Vec<usize>,
}

impl NarParser {
    pub fn new(limits: NarLimits) -> Self {
        NarParser {
            limits,
            state: State::Fixed(Fixed::Start, 0),
            offset: 0,
            length: [0; 8],
            length_at: 0,
            text_len: 0,
            text: Vec::new(),
            executable: false,
            name: Vec::new(),
            last_names: Vec::new(),
            open: Vec::new(),
        }
    }

    /// Bytes consumed since the NAR's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether the whole NAR has been seen.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Ends the input. [`NarError::Truncated`] unless the NAR is complete.
    pub fn finish(&self) -> Result<(), NarError> {
        match self.state {
            State::Done => Ok(()),
            _ => Err(NarError::Truncated { offset: self.offset }),
        }
    }

    /// Parses `input` and returns how much of it belongs to the NAR: all of it unless the NAR
    /// ended. After an error the parser must not be used again.
    pub fn feed<S: NarSink>(&mut self, input: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        let mut rest = input;
        while !rest.is_empty() && self.state != State::Done {
            let used = match self.state {
                State::Fixed(fixed, at) => self.fixed(fixed, at, rest)?,
                State::Text(text) => self.text(text, rest, sink)?,
                State::Size => self.size(rest, sink)?,
                State::Contents(left) => self.contents(left, rest, sink)?,
                State::Padding(left, padded) => self.padding(left, padded, rest, sink)?,
                State::Done => break,
            };
            rest = &rest[used..];
        }
        Ok(input.len() - rest.len())
    }

    fn fixed(&mut self, fixed: Fixed, at: usize, input: &[u8]) -> Result<usize, NarError> {
        let wanted = &fixed.block()[at..];
        let n = wanted.len().min(input.len());
        if input[..n] != wanted[..n] {
            return Err(self.expected(fixed.expected()));
        }
        self.offset += n as u64;
        if n < wanted.len() {
            self.state = State::Fixed(fixed, at + n);
            return Ok(n);
        }
        match fixed {
            Fixed::Start | Fixed::Node => self.begin(Text::Kind),
            Fixed::Name => self.begin(Text::Name),
            Fixed::Target => self.begin(Text::Target),
            Fixed::Executable => {
                self.executable = true;
                self.begin_size();
            }
            Fixed::CloseNode => self.node_ended(),
            Fixed::CloseEntry => self.begin(Text::DirectoryTag),
        }
        Ok(n)
    }

    fn begin(&mut self, text: Text) {
        self.length_at = 0;
        self.state = State::Text(text);
    }

    fn begin_size(&mut self) {
        self.length_at = 0;
        self.state = State::Size;
    }

    fn node_ended(&mut self) {
        self.state = match self.open.is_empty() {
            true => State::Done,
            false => State::Fixed(Fixed::CloseEntry, 0),
        };
    }

    /// Reads up to 8 length bytes; `Some` when the length is complete.
    fn length(&mut self, input: &[u8]) -> (usize, Option<u64>) {
        let n = (8 - self.length_at).min(input.len());
        self.length[self.length_at..self.length_at + n].copy_from_slice(&input[..n]);
        self.length_at += n;
        self.offset += n as u64;
        let complete = (self.length_at == 8).then(|| u64::from_le_bytes(self.length));
        (n, complete)
    }

    fn text<S: NarSink>(&mut self, text: Text, input: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        let mut used = 0;
        if self.length_at < 8 {
            let (n, complete) = self.length(input);
            used = n;
            let Some(len) = complete else {
                return Ok(used);
            };
            let limit = match text {
                Text::Name => self.limits.name_len,
                Text::Target => self.limits.target_len,
                _ => TAG_LEN_MAX,
            };
            match usize::try_from(len) {
                Ok(len) if len <= limit => self.text_len = len,
                _ => return Err(self.expected(text.expected()).into()),
            }
            self.text.clear();
        }
        let n = (self.text_len - self.text.len()).min(input.len() - used);
        self.text.extend_from_slice(&input[used..used + n]);
        self.offset += n as u64;
        used += n;
        if self.text.len() == self.text_len {
            match pad(self.text_len as u64) {
                0 => self.text_complete(text, sink)?,
                left => self.state = State::Padding(left, Padded::Text(text)),
            }
        }
        Ok(used)
    }

    fn padding<S: NarSink>(&mut self, left: u8, padded: Padded, input: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        let n = usize::from(left).min(input.len());
        if input[..n].iter().any(|&b| b != 0) {
            let offset = self.offset;
            return Err(NarError::Padding { offset }.into());
        }
        self.offset += n as u64;
        let left = left - n as u8;
        if left > 0 {
            self.state = State::Padding(left, padded);
            return Ok(n);
        }
        match padded {
            Padded::Contents => self.state = State::Fixed(Fixed::CloseNode, 0),
            Padded::Text(text) => self.text_complete(text, sink)?,
        }
        Ok(n)
    }

    fn text_complete<S: NarSink>(&mut self, text: Text, sink: &mut S) -> Result<(), S::Error> {
        match (text, self.text.as_slice()) {
            (Text::Kind, b"regular") => {
                self.check_depth()?;
                self.executable = false;
                self.begin(Text::RegularTag);
            }
            (Text::Kind, b"symlink") => {
                self.check_depth()?;
                self.state = State::Fixed(Fixed::Target, 0);
            }
            (Text::Kind, b"directory") => {
                self.check_depth()?;
                sink.directory(&self.name, self.offset)?;
                self.open.push(self.last_names.len());
                self.begin(Text::DirectoryTag);
            }
            (Text::RegularTag, b"executable") => self.state = State::Fixed(Fixed::Executable, 0),
            (Text::RegularTag, b"contents") => self.begin_size(),
            (Text::DirectoryTag, b"entry") => self.state = State::Fixed(Fixed::Name, 0),
            (Text::DirectoryTag, b")") => {
                if let Some(start) = self.open.pop() {
                    self.last_names.truncate(start);
                }
                sink.end_directory(self.offset)?;
                self.node_ended();
            }
            (Text::Name, _) => {
                self.entry_named()?;
                self.state = State::Fixed(Fixed::Node, 0);
            }
            (Text::Target, target) => {
                check_target(target, &self.limits, self.offset)?;
                sink.symlink(&self.name, target, self.offset)?;
                self.state = State::Fixed(Fixed::CloseNode, 0);
            }
            (_, _) => return Err(self.expected(text.expected()).into()),
        }
        Ok(())
    }

    fn check_depth(&self) -> Result<(), NarError> {
        let limit = self.limits.depth;
        match self.open.len() < limit {
            true => Ok(()),
            false => Err(NarError::Depth { limit }),
        }
    }

    fn entry_named(&mut self) -> Result<(), NarError> {
        check_name(&self.text, &self.limits)?;
        let start = self.open.last().copied().unwrap_or(0);
        // An empty previous name is the directory's beginning: every valid name is above it.
        if self.text.as_slice() <= &self.last_names[start..] {
            return Err(NarError::Unsorted(self.text.clone()));
        }
        self.last_names.truncate(start);
        self.last_names.extend_from_slice(&self.text);
        self.name.clear();
        self.name.extend_from_slice(&self.text);
        Ok(())
    }

    fn size<S: NarSink>(&mut self, input: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        let (used, complete) = self.length(input);
        if let Some(size) = complete {
            let offset = self.offset;
            if size > OFFSET_MAX.saturating_sub(offset) {
                return Err(NarError::Size { size, offset }.into());
            }
            sink.regular(&self.name, self.executable, size, offset)?;
            match size {
                0 => self.contents_complete(sink)?,
                _ => self.state = State::Contents(size),
            }
        }
        Ok(used)
    }

    fn contents<S: NarSink>(&mut self, left: u64, input: &[u8], sink: &mut S) -> Result<usize, S::Error> {
        let n = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
        sink.contents(&input[..n], self.offset)?;
        self.offset += n as u64;
        match left - n as u64 {
            0 => self.contents_complete(sink)?,
            left => self.state = State::Contents(left),
        }
        Ok(n)
    }

    fn contents_complete<S: NarSink>(&mut self, sink: &mut S) -> Result<(), S::Error> {
        sink.end_regular(self.offset)?;
        // Contents start on a multiple of 8, so the offset alone tells the padding.
        self.state = match pad(self.offset) {
            0 => State::Fixed(Fixed::CloseNode, 0),
            left => State::Padding(left, Padded::Contents),
        };
        Ok(())
    }

    fn expected(&self, expected: &'static str) -> NarError {
        let offset = self.offset;
        NarError::Expected { expected, offset }
    }
}

/// Zero bytes that follow `len` bytes.
fn pad(len: u64) -> u8 {
    (len.wrapping_neg() % 8) as u8
}
