//! Which control groups this process may make others in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::PREFIX;
use crate::Cgroups;

/// Where our own processes go in the unified hierarchy: a group with controllers for its children can't have
/// processes itself.
const OWN_GROUP: &str = "shoal-node";

/// The controllers that builds get, if delegated. The kernel adds what `cpu.stat` needs by itself.
const CONTROLLERS: &str = "+memory";

/// Finds the best way to meter builds, and prepares it: moves this process into a group of its own in the
/// unified hierarchy where that is ours (systemd's `Delegate=yes`). Call it once, at the start of the node,
/// before there are threads or processes that must not move. Removes groups that killed builds left behind.
pub fn cgroups() -> Cgroups {
    let found = unified().or_else(legacy).unwrap_or(Cgroups::Off);
    match &found {
        Cgroups::Off => {}
        Cgroups::V2 { parent, .. } => remove_leftovers(parent),
        Cgroups::V1 { memory, cpuacct, .. } => {
            memory.iter().chain(cpuacct).for_each(|parent| remove_leftovers(parent));
        }
    }
    found
}

/// What [`cgroups`] would find, without preparing anything.
pub(crate) fn available() -> Cgroups {
    let parent = unified_parent();
    let unified = parent.map(|parent| Cgroups::V2 { parent, memory_max: None });
    unified.or_else(legacy).unwrap_or(Cgroups::Off)
}

/// A mounted hierarchy and our place in it.
fn own_group(mounts: &str, groups: &str, controller: Option<&str>) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let (root, point) = match place.split(' ').collect::<Vec<_>>()[..] {
            [_, _, _, root, point, ..] => (root, point),
            _ => return None,
        };
        let (kind, options) = match kind.split(' ').collect::<Vec<_>>()[..] {
            [kind, _, options, ..] => (kind, options),
            _ => return None,
        };
        let is_wanted = match controller {
            None => kind == "cgroup2",
            Some(name) => kind == "cgroup" && options.split(',').any(|option| option == name),
        };
        is_wanted.then_some((root, point))
    });
    let group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_wanted = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|controller| controller == name),
        };
        is_wanted.then_some(path)
    });
    let ((root, point), group) = (mount?, group?);
    let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(""));
    Some(Path::new(point).join(below))
}

fn place(controller: Option<&str>) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let place = own_group(&mounts, &groups, controller)?;
    access(&place, Access::WRITE_OK).ok()?;
    Some(place)
}

/// Our place in the unified hierarchy, if it has a memory controller for us.
fn unified_parent() -> Option<PathBuf> {
    let mut parent = place(None)?;
    // A restart in the same group, or a second call: go up again.
    if parent.file_name().is_some_and(|name| name == OWN_GROUP) {
        parent.pop();
    }
    let controllers = fs::read_to_string(parent.join("cgroup.controllers")).ok()?;
    controllers.split_whitespace().any(|name| name == "memory").then_some(parent)
}

/// Takes the unified hierarchy, or leaves things as they were.
fn unified() -> Option<Cgroups> {
    let parent = unified_parent()?;
    let own = parent.join(OWN_GROUP);
    match fs::create_dir(&own) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return None,
        _ => {}
    }
    let pid = std::process::id().to_string();
    let moved = fs::write(own.join("cgroup.procs"), &pid);
    if moved.and_then(|()| fs::write(parent.join("cgroup.subtree_control"), CONTROLLERS)).is_err() {
        // Somebody else lives in our group. If that does not undo it, we are only at another place.
        let _ = fs::write(parent.join("cgroup.procs"), &pid);
        let _ = fs::remove_dir(&own);
        return None;
    }
    Some(Cgroups::V2 { parent, memory_max: None })
}

fn legacy() -> Option<Cgroups> {
    let (memory, cpuacct) = (place(Some("memory")), place(Some("cpuacct")));
    if memory.is_none() && cpuacct.is_none() {
        return None;
    }
    Some(Cgroups::V1 { memory, cpuacct, memory_max: None })
}

/// Groups whose supervisor was killed. Those in use are not empty and stay.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::own_group;
    use std::path::PathBuf;

    const MOUNTS: &str = "\
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
41 31 0:38 /outer /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const GROUPS: &str = "\
4:memory:/builds/one
2:cpu,cpuacct:/
0::/outer/inner
";

    #[test]
    fn each_hierarchy_has_its_own_place() {
        let group = |controller| own_group(MOUNTS, GROUPS, controller);
        assert_eq!(group(None), Some(PathBuf::from("/sys/fs/cgroup/unified/inner")));
        assert_eq!(group(Some("memory")), Some("/sys/fs/cgroup/memory/builds/one".into()));
        assert_eq!(group(Some("cpuacct")), Some("/sys/fs/cgroup/cpuacct/".into()));
        assert_eq!(group(Some("pids")), None);
    }
}
