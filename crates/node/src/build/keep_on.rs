//! Builds whose client's link broke: they go on for a while, and a client that comes back joins them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::request::{BuildHandle, Progress};
use super::service::BuildService;

/// From the loss of a link until what its client wanted is given up: a person notices, and asks again.
pub const GRACE: Duration = Duration::from_secs(120);
/// Requests that go on so at once; the clients of more lose what they wanted.
const KEPT_MAX: usize = 64;

impl BuildService {
    /// Goes on with what `handle` wants for [`GRACE`], although nobody reads what happens.
    pub fn keep_on(self: &Arc<Self>, mut handle: BuildHandle) {
        if self.kept.fetch_add(1, Ordering::AcqRel) >= KEPT_MAX {
            self.kept.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        tracing::info!(seconds = GRACE.as_secs(), "a client's link broke; what it wants is built on for a while");
        let service = self.clone();
        let wait = move || {
            let deadline = Instant::now() + GRACE;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() || matches!(handle.next(left), Progress::Done(_)) {
                    break;
                }
            }
            drop(handle);
            service.kept.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(error) = std::thread::Builder::new().name("kept build".into()).spawn(wait) {
            self.kept.fetch_sub(1, Ordering::AcqRel);
            tracing::warn!(%error, "cannot start a thread; what a client wanted is given up");
        }
    }
}
