//! Why a transfer failed, and whether to try again.

use std::io;
use std::time::Duration;

use ureq::{Error, Timeout};

use super::client::Patience;

#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub text: String,
    /// `None`: it would fail again.
    pub retry: Option<Pace>,
}

/// How soon to try again; with the wait that the server asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    Quick(Option<Duration>),
    /// The server is overloaded.
    Slow(Option<Duration>),
}

impl Fault {
    pub fn permanent(text: impl Into<String>) -> Fault {
        Fault { text: text.into(), retry: None }
    }

    pub fn transient(text: impl Into<String>) -> Fault {
        Fault { text: text.into(), retry: Some(Pace::Quick(None)) }
    }

    /// Of a request that got no answer.
    pub fn of_request(error: Error, patience: &Patience) -> Fault {
        match error {
            Error::Io(error) => Fault::of_io(error, patience),
            Error::Rustls(error) => Fault::of_tls(&error),
            Error::Timeout(limit) => Fault::transient(timeout_text(limit, patience)),
            Error::HostNotFound => Fault::transient("Could not resolve hostname"),
            Error::BadUri(_) | Error::Http(_) | Error::InvalidProxyUrl | Error::Tls(_) => {
                Fault::permanent(error.to_string())
            }
            other => Fault::transient(other.to_string()),
        }
    }

    /// Of a body that broke off. ureq and rustls wrap their own errors.
    pub fn of_io(error: io::Error, patience: &Patience) -> Fault {
        let inner = error.get_ref();
        if inner.is_some_and(|inner| inner.is::<Error>() || inner.is::<io::Error>()) {
            let kind = error.kind();
            return match error.into_inner().map(|inner| inner.downcast::<Error>()) {
                Some(Ok(error)) => Fault::of_request(*error, patience),
                Some(Err(inner)) => match inner.downcast::<io::Error>() {
                    Ok(error) => Fault::of_io(*error, patience),
                    Err(inner) => Fault::transient(inner.to_string()),
                },
                None => Fault::transient(kind.to_string()),
            };
        }
        match inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Fault::of_tls(error),
            None => Fault::transient(super::reason(&error)),
        }
    }

    fn of_tls(error: &rustls::Error) -> Fault {
        let text = format!("TLS: {error}");
        match error {
            rustls::Error::InvalidCertificate(_) => Fault::permanent(text),
            _ => Fault::transient(text),
        }
    }
}

fn timeout_text(limit: Timeout, patience: &Patience) -> String {
    match limit {
        Timeout::PerRead | Timeout::PerWrite => format!("no data for {:?}", patience.stalled),
        _ => format!("no connection within {:?}", patience.connect),
    }
}
