//! The first requests of a mount come from itself.
//!
//! The kernel stops to ask for what is never needed (opening, closing, access, extended attributes) only when it was
//! answered once that nobody knows of it. A process that dies closes its files, and if that is a question to a server
//! which is stopped, it cannot be killed. So the questions are asked before anybody else has a file open.

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// The file that is opened. It is empty, and no name of a store path.
pub const NAME: &str = ".shoal";
/// Longer than a busy machine takes. After that the mount is used as it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks a mount, which is served by now, what needs to be asked once.
pub fn greet(dir: &Path) {
    let (tell, told) = mpsc::channel::<()>();
    let dir = dir.to_owned();
    let ask = move || {
        let file = dir.join(NAME);
        // Only that it is asked counts.
        drop(File::open(&file));
        let _ = rustix::fs::access(&file, rustix::fs::Access::EXEC_OK);
        let _ = rustix::fs::getxattr(&file, "security.capability", &mut [0u8; 0][..]);
        let _ = rustix::fs::listxattr(&file, &mut [0u8; 0][..]);
        drop(fs::read_dir(&dir));
        drop(tell);
    };
    if thread::Builder::new().name("greeting".into()).spawn(ask).is_ok() {
        // It says nothing, it ends.
        let _ = told.recv_timeout(PATIENCE);
    }
}
