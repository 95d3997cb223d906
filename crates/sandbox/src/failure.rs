//! Why a sandbox could not be made: a text, for people.

use std::fmt::{self, Display};
use std::io;

/// What was tried and what the kernel said.
#[derive(Debug)]
pub(crate) struct Failure(String);

pub(crate) type Attempt<T> = Result<T, Failure>;

impl Failure {
    pub fn new(text: impl Into<String>) -> Self {
        Failure(text.into())
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Says what an operation was for. Only a failure is worth a text: give `format_args!`, or a function.
pub(crate) trait Doing<T>: Sized {
    fn doing(self, what: impl Display) -> Attempt<T> {
        self.doing_with(|| what)
    }

    fn doing_with<D: Display>(self, what: impl FnOnce() -> D) -> Attempt<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing_with<D: Display>(self, what: impl FnOnce() -> D) -> Attempt<T> {
        self.map_err(|error| Failure(format!("{}: {}", what(), reason(&error.into()))))
    }
}

/// The kernel's text for an error, as Nix prints it: without the number.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(" (os error ") {
        Some((reason, _)) => reason.to_owned(),
        None => text,
    }
}
