//! What is mounted where, from the kernel's own list.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount, as `/proc/self/mountinfo` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountLine {
    /// The minor number of its device, which is the number of its connection where it is a file system in user space.
    pub minor: u32,
    pub dir: PathBuf,
    pub kind: String,
    pub source: String,
}

/// The mounts of this process, in the order they were made.
pub fn read() -> std::io::Result<Vec<MountLine>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Lines that are not of the known form are left out.
pub fn parse(text: &[u8]) -> Vec<MountLine> {
    text.split(|&byte| byte == b'\n').filter_map(line).collect()
}

fn line(text: &[u8]) -> Option<MountLine> {
    let fields: Vec<&[u8]> = text.split(|&byte| byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    let (_, minor) = str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    Some(MountLine {
        minor: minor.parse().ok()?,
        dir: PathBuf::from(OsString::from_vec(unescape(fields.get(4)?))),
        kind: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: String::from_utf8_lossy(&unescape(fields.get(dash + 2)?)).into_owned(),
    })
}

/// Blanks, line ends and backslashes are written as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| byte == b'\\') {
            Some(escaped) => {
                out.push(escaped);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

/// Whether `dir` is a mount of ours, and its connection.
pub fn ours_at<'a>(lines: &'a [MountLine], dir: &Path) -> Option<&'a MountLine> {
    lines.iter().rev().find(|line| line.dir == dir).filter(|line| is_ours(line))
}

/// Whether a mount is one of shoal's, of whatever process.
pub fn is_ours(line: &MountLine) -> bool {
    line.kind.starts_with("fuse") && line.source == crate::mount::SOURCE_NAME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_as_the_kernel_writes_them() {
        let text = b"36 35 98:0 / /mnt1 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            61 35 0:52 / /mnt/a\\040b\\134 ro,nosuid - fuse shoal ro,user_id=0\n\
            62 35 0:x / /broken ro - fuse shoal ro\n\
            63 35\n\n";
        let lines = parse(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].dir, Path::new("/mnt/a b\\"));
        assert_eq!((lines[1].minor, lines[1].kind.as_str(), lines[1].source.as_str()), (52, "fuse", "shoal"));
        assert_eq!(ours_at(&lines, Path::new("/mnt/a b\\")), Some(&lines[1]));
        assert_eq!(ours_at(&lines, Path::new("/mnt1")), None);
    }
}
