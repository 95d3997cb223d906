//! What is written to a bucket behind the nodes and when, and how it is read back.
//!
//! Nobody waits for any of it: a path that becomes valid goes to the [`Backlog`], its new chunks into a pack that is
//! [`Filling`], and what fails is tried again after a [`Backoff`]. Reading is the opposite: a client waits, so frames that
//! lie near each other come as one [`Span`].

mod backlog;
mod backoff;
mod filling;
mod spans;

pub use backlog::{BACKLOG_MAX, Backlog, Next};
pub use backoff::Backoff;
pub use filling::{Filling, HOLD_MS, LINGER_MS, WAITING_MAX};
pub use spans::{Frame, SPAN_LEN_MAX, Span, spans};
