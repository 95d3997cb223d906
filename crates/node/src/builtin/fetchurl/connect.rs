//! Connections as ureq shall use them.
//!
//! Two things differ from its own. A connection that breaks is an error even where the body ends with the connection;
//! ureq takes a reset for the end. And a plain `http` URL goes through a plain proxy as a request for the absolute URL,
//! which proxies allow, not through a tunnel, which they allow for `https` only.

use std::io;

use ureq::Error;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// Wraps the connections of the connectors before it.
#[derive(Debug)]
pub struct Watch {
    /// What to put before the path of each request: scheme and host, for a proxy.
    pub request_prefix: String,
}

impl<In: Transport> Connector<In> for Watch {
    type Out = Watched<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Watched<In>>, Error> {
        let request_prefix = self.request_prefix.clone();
        Ok(chained.map(|transport| Watched { transport, request_prefix }))
    }
}

#[derive(Debug)]
pub struct Watched<T> {
    transport: T,
    /// Empty once it is sent. A connection serves one request.
    request_prefix: String,
}

impl<T: Transport> Transport for Watched<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.transport.buffers()
    }

    fn transmit_output(&mut self, mut amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let prefix = std::mem::take(&mut self.request_prefix);
        if !prefix.is_empty() {
            let output = self.transport.buffers().output();
            let at = output.iter().take(amount).position(|&b| b == b' ').map_or(0, |space| space + 1);
            let longer = amount + prefix.len();
            let Some(gap) = output.get_mut(at..longer) else {
                return Err(Error::BadUri("URL is too long for a proxy".to_owned()));
            };
            gap.copy_within(..amount - at, prefix.len());
            gap[..prefix.len()].copy_from_slice(prefix.as_bytes());
            amount = longer;
        }
        self.transport.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.transport.await_input(timeout).map_err(|error| match error {
            Error::Io(error) if is_broken(&error) => Error::Io(io::Error::other(error)),
            other => other,
        })
    }

    fn is_open(&mut self) -> bool {
        self.transport.is_open()
    }

    fn is_tls(&self) -> bool {
        self.transport.is_tls()
    }
}

fn is_broken(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// Finds one host, whatever it is asked for.
#[derive(Debug)]
pub struct Fixed {
    /// The URI of the proxy.
    pub uri: Uri,
    pub inner: DefaultResolver,
}

impl Resolver for Fixed {
    fn resolve(&self, _: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        self.inner.resolve(&self.uri, config, timeout)
    }
}
