use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Says whether one transport may be read: not while any of its pipes is full. Also how it is cut from outside.
#[derive(Default)]
pub struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    full_pipes: usize,
    cut: bool,
    ended: bool,
    waker: Option<Waker>,
}

/// The transport was cut by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut;

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shut(&self) {
        self.lock().full_pipes += 1;
    }

    pub(super) fn open(&self) {
        let mut state = self.lock();
        state.full_pipes = state.full_pipes.saturating_sub(1);
        let waker = if state.full_pipes == 0 { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the transport: every later read and write of it fails.
    pub fn cut(&self) {
        let mut state = self.lock();
        state.cut = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub fn is_cut(&self) -> bool {
        self.lock().cut
    }

    /// The client has sent all that it will: its side of the transport is closed in good order.
    pub fn note_end(&self) {
        self.lock().ended = true;
    }

    /// Whether a transport that is over broke: neither its client nor this node closed it.
    pub fn is_lost(&self) -> bool {
        let state = self.lock();
        !state.cut && !state.ended
    }

    /// Ready when the transport may be read, or with [`Cut`]. The task is woken by a later cut in any case.
    pub fn poll_open(&self, context: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        let mut state = self.lock();
        if state.cut {
            return Poll::Ready(Err(Cut));
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            state.waker = Some(context.waker().clone());
        }
        if state.full_pipes == 0 { Poll::Ready(Ok(())) } else { Poll::Pending }
    }
}
