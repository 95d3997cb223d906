//! Overlays of the store directory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::Personality;
use crate::identity::Rights;

/// The directories of an overlay, attached somewhere in this mount name space.
pub(crate) struct Layers<'a> {
    pub view: &'a OwnedFd,
    /// What the view redirects to.
    pub below: Option<&'a OwnedFd>,
    pub upper: &'a OwnedFd,
    pub work: &'a OwnedFd,
}

impl Layers<'_> {
    /// A detached overlay.
    pub fn mount(&self, rights: Rights, personality: Personality) -> io::Result<OwnedFd> {
        // Named by descriptors: option values are limited to 255 bytes and would need quoting.
        let path = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
        let below = self.below.map_or(String::new(), |below| format!(":{}", path(below)));
        // Old 32-bit programs can't stat a file whose inode number has a layer's number in its upper bits.
        let xino = if personality == Personality::Linux32 { "off" } else { "on" };
        let mut options = vec![
            ("lowerdir", path(self.view) + &below),
            ("upperdir", path(self.upper)),
            ("workdir", path(self.work)),
            ("index", "off".to_owned()),
            ("xino", xino.to_owned()),
        ];
        if self.below.is_some() {
            options.push(("redirect_dir", "on".to_owned()));
            options.push(("metacopy", "on".to_owned()));
        }
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            fsconfig_set_string(&context, key, value.as_str())?;
        }
        if rights == Rights::User {
            fsconfig_set_flag(&context, "userxattr")?;
        }
        // Without it every end of a build would flush the whole file system below.
        fsconfig_set_flag(&context, "volatile")?;
        fsconfig_create(&context)?;
        Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
    }
}
