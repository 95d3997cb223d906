use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Action = Box<dyn FnOnce() + Send>;

/// Tells a session, wherever it is busy, that nobody waits for it any more.
#[derive(Clone, Default)]
pub struct Hangup(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    fired: bool,
    lost: bool,
    next_id: u64,
    actions: Vec<(u64, Action)>,
}

impl Hangup {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_gone(&self) -> bool {
        self.lock().fired
    }

    /// Whether the client went without wanting to: its link broke, and it may come back.
    pub fn is_lost(&self) -> bool {
        self.lock().lost
    }

    /// Runs `action` when the client goes, at once if it has gone; not any more after the guard is dropped. The action
    /// runs on a door's thread and must not block.
    #[must_use = "the action is withdrawn when the guard is dropped"]
    pub fn watch(&self, action: impl FnOnce() + Send + 'static) -> Watch {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        if state.fired {
            drop(state);
            action();
        } else {
            state.actions.push((id, Box::new(action)));
        }
        Watch { hangup: self.clone(), id }
    }

    /// The same as [`Hangup::fire`], for a link that broke.
    pub fn lose(&self) {
        let mut state = self.lock();
        state.lost = !state.fired;
        drop(state);
        self.fire();
    }

    pub fn fire(&self) {
        let mut state = self.lock();
        state.fired = true;
        let actions = std::mem::take(&mut state.actions);
        drop(state);
        for (_, action) in actions {
            action();
        }
    }
}

/// Keeps an action of [`Hangup::watch`] armed.
pub struct Watch {
    hangup: Hangup,
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hangup.lock().actions.retain(|(id, _)| *id != self.id);
    }
}
