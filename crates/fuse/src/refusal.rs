//! Answers that say that something is not, or did not come.

use crate::file_system::Shared;
use fuser::{Errno, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry};
use std::sync::atomic::Ordering;

/// An answer that may be an error.
pub trait Refuse: Send + 'static {
    fn refuse(self, error: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, error: Errno) {
                self.error(error);
            }
        })*
    };
}

refuse!(ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry);

impl Shared {
    /// Answers with an error, as long as the mount is this process's. Once it was left to the next, what fails here may
    /// only fail because this one is ending: it is not answered, so that the kernel asks the next.
    pub fn refuse(&self, reply: impl Refuse, error: Errno) {
        match self.is_left.load(Ordering::Acquire) {
            true => std::mem::forget(reply),
            false => reply.refuse(error),
        }
    }
}
