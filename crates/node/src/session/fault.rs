use shoal_wire::nix::proto::ProtoError;
use shoal_wire::nix::worker::HandshakeError;

/// Why a request has no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The client is told and may ask for other things. Text for people, without `error:`.
    Refused(String),
    /// The client is told and hung up on: its stream is not understood any more, or it must not go on.
    Fatal(String),
    /// There is nobody to tell.
    Gone,
}

impl Fault {
    pub fn refused(text: impl Into<String>) -> Self {
        Fault::Refused(text.into())
    }

    pub fn fatal(text: impl Into<String>) -> Self {
        Fault::Fatal(text.into())
    }

    /// The same, but the connection ends.
    pub fn ending(self) -> Self {
        match self {
            Fault::Refused(text) => Fault::Fatal(text),
            other => other,
        }
    }
}

/// For writes to the client: they fail only when it is gone.
pub fn gone(_: std::io::Error) -> Fault {
    Fault::Gone
}

/// What was sent is not what the protocol has here, so what follows has no known meaning.
impl From<ProtoError> for Fault {
    fn from(error: ProtoError) -> Self {
        if error.is_disconnect() { Fault::Gone } else { Fault::Fatal(format!("protocol error: {error}")) }
    }
}

impl From<HandshakeError> for Fault {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::Proto(error) => error.into(),
            error => Fault::Fatal(error.to_string()),
        }
    }
}

impl From<shoal_store::Error> for Fault {
    fn from(error: shoal_store::Error) -> Self {
        Fault::Refused(error.to_string())
    }
}

impl From<anyhow::Error> for Fault {
    fn from(error: anyhow::Error) -> Self {
        Fault::Refused(format!("{error:#}"))
    }
}
