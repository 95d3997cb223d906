//! Process 1 of the sandbox, from its birth to the builder.
//!
//! It is born in its name spaces while the node is idle and waits for a spec; then it makes the mounts, gives
//! up its rights and becomes the builder. The supervisor hears from it only when ids must be mapped and when
//! something fails; that the builder runs shows in the socket being closed.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{
    Gid, Resource, Rlimit, Signal, Uid, chdir, fchdir, getrlimit, pivot_root, set_parent_process_death_signal,
    setrlimit, setsid, umask,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::failure::{Attempt, Doing, Failure, reason};
use crate::identity::{INSIDE_GID, INSIDE_UID, Ids, Rights};
use crate::rootfs::{Base, Root};
use crate::spec::decode_inputs;
use crate::store::Plan;
use crate::supervisor::Builtin;
use crate::{Personality, Program, Scratch, Spec, message, sys};

/// What the two say to each other.
pub(crate) mod talk {
    /// Supervisor: your ids are mapped (without root), your control group is set.
    pub const WARM: &[u8] = b"w";
    /// Child: I am in a new user name space, map my ids. Supervisor: done.
    pub const IDS: &[u8] = b"i";
    /// Supervisor: a spec, and maybe a view, attached. Then, when the scratch directory is ready, the builder's ids.
    pub const SPEC: &[u8] = b"s";
    /// Child: I failed, and why.
    pub const FAILED: u8 = b'f';
}

/// Code of a child that has told why it failed, and of a builder that could not be executed.
const FAILURE_CODE: i32 = 1;

/// The largest spec: a hundred times the environment, files and inputs of the largest known derivation.
const SPEC_MAX: usize = 256 * 1024 * 1024;

/// `ADDR_NO_RANDOMIZE` and `PER_LINUX32` of `sys/personality.h`.
const NO_RANDOMIZE: u64 = 0x004_0000;
const LINUX32: u64 = 0x0008;

/// What a child inherits from its supervisor.
pub(crate) struct Inheritance<'a> {
    pub rights: Rights,
    pub filter: &'a [u8],
    pub builtin: Builtin,
    /// `None` is as many as the node itself may have.
    pub threads_max: Option<u64>,
    /// The host's network, for builds that may use it. `None` if the child was born in it.
    pub host_network: Option<OwnedFd>,
    pub terminal: OwnedFd,
    pub supervisor: OwnedFd,
}

/// Never comes back: becomes the builder, or fails and says so.
pub(crate) fn run(inheritance: &Inheritance<'_>) -> ! {
    // The stack above is the supervisor's: a panic must not unwind into it.
    let outcome = catch_unwind(AssertUnwindSafe(|| set_up(inheritance)))
        .unwrap_or_else(|_| Err(Failure::new("the sandbox's first process panicked")));
    let failure = match outcome {
        Ok(code) => sys::exit_now(code),
        Err(failure) => failure,
    };
    let mut text = failure.to_string().into_bytes();
    text.truncate(message::MESSAGE_MAX - 1);
    text.insert(0, talk::FAILED);
    // Without a supervisor there is nobody to tell.
    let _ = message::send(&inheritance.supervisor, &text);
    sys::exit_now(FAILURE_CODE)
}

fn set_up(inheritance: &Inheritance<'_>) -> Attempt<i32> {
    expect(inheritance, talk::WARM)?;
    setsid().doing("making a session")?;
    if inheritance.host_network.is_some() {
        sys::loopback_up().doing("switching the loopback interface on")?;
    }
    rustix::system::sethostname(b"localhost").doing("setting the host name")?;
    rustix::system::setdomainname(b"(none)").doing("setting the domain name")?;
    sys::unshare(UnshareFlags::NEWNS).doing("making a mount name space")?;
    // What the host unmounts meanwhile must go here, too; nothing of ours may show there.
    let downstream = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", downstream).doing("separating mounts")?;
    umask(Mode::empty());
    let base = Base::create(inheritance.rights)?;

    let (bytes, view) = receive_spec(inheritance)?;
    let (spec, inputs) = Spec::decode(&bytes).map_err(unreadable)?;
    let plan = Plan::new(decode_inputs(inputs).map_err(unreadable)?, view)?;
    if let (true, Some(network)) = (spec.network, &inheritance.host_network) {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .doing("joining the host's network")?;
    }
    enter_root(base, &spec, &plan, inheritance)?;
    redirect_streams(&inheritance.terminal)?;
    give_up_rights(inheritance)?;
    restrict(&spec, inheritance)?;
    start(&spec, inheritance.builtin)
}

fn gone() -> Failure {
    Failure::new("the supervisor went away")
}

fn expect(inheritance: &Inheritance<'_>, wanted: &[u8]) -> Attempt<()> {
    let mut buffer = [0; 16];
    let received = message::receive(&inheritance.supervisor, &mut buffer).doing("waiting for the supervisor")?;
    if received.bytes == wanted { Ok(()) } else { Err(gone()) }
}

/// An encoded spec, and the view of the inputs if there is one.
fn receive_spec(inheritance: &Inheritance<'_>) -> Attempt<(Vec<u8>, Option<OwnedFd>)> {
    let mut buffer = [0; 1];
    let received = message::receive(&inheritance.supervisor, &mut buffer).doing("waiting for a build")?;
    let mut fds = received.fds.into_iter();
    let bytes = read_spec(&fds.next().ok_or_else(gone)?)?;
    Ok((bytes, fds.next()))
}

/// Waits for the supervisor to have the scratch directory ready.
fn receive_ids(inheritance: &Inheritance<'_>) -> Attempt<Ids> {
    let mut buffer = [0; 16];
    let received = message::receive(&inheritance.supervisor, &mut buffer).doing("waiting for ids")?;
    Ids::decode(received.bytes).ok_or_else(gone)
}

/// An encoded spec, from its file.
pub(crate) fn read_spec(file: &OwnedFd) -> Attempt<Vec<u8>> {
    let doing = "reading the spec";
    let len = usize::try_from(rustix::fs::fstat(file).doing(doing)?.st_size).unwrap_or(usize::MAX);
    let mut bytes = vec![0; len.min(SPEC_MAX)];
    // A memory file is read as a whole.
    let read = rustix::io::pread(file, bytes.as_mut_slice(), 0).doing(doing)?;
    bytes.truncate(read);
    Ok(bytes)
}

pub(crate) fn unreadable(error: postcard::Error) -> Failure {
    Failure::new(format!("reading the spec: {error}"))
}

/// Makes the builder's file system and leaves the host's.
fn enter_root(base: Base, spec: &Spec, plan: &Plan<'_>, inheritance: &Inheritance<'_>) -> Attempt<()> {
    let ids = receive_ids(inheritance)?;
    let scratch = Scratch::new(&spec.scratch);
    let root = Root::create(base, spec, &scratch, inheritance.rights, ids)?;
    plan.mount(spec, &scratch, &root, inheritance.rights)?;
    fchdir(&root.dir).doing("entering the root")?;
    pivot_root(".", ".").doing("changing the root")?;
    unmount(".", UnmountFlags::DETACH).doing("leaving the host's root")?;
    chdir("/").doing("entering the root")
}

fn redirect_streams(terminal: &OwnedFd) -> Attempt<()> {
    let null = open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let null = null.doing("opening '/dev/null'")?;
    sys::duplicate_to(null, 0).doing("setting stdin")?;
    sys::duplicate_to(terminal, 1).doing("setting stdout")?;
    sys::duplicate_to(terminal, 2).doing("setting stderr")
}

fn give_up_rights(inheritance: &Inheritance<'_>) -> Attempt<()> {
    if inheritance.rights == Rights::Root {
        set_thread_groups(&[]).doing("leaving all groups")?;
        sys::unshare(UnshareFlags::NEWUSER).doing("making a user name space")?;
        message::send(&inheritance.supervisor, talk::IDS).doing("asking for ids")?;
        expect(inheritance, talk::IDS)?;
    }
    let (uid, gid) = (Uid::from_raw(INSIDE_UID), Gid::from_raw(INSIDE_GID));
    set_thread_res_gid(gid, gid, gid).doing("setting the group id")?;
    set_thread_res_uid(uid, uid, uid).doing("setting the user id")?;
    let none = CapabilitySet::empty();
    let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, none).doing("giving up capabilities")?;
    set_parent_process_death_signal(Some(Signal::KILL)).doing("tying myself to the supervisor")?;
    // It may have died before that.
    match message::try_receive(&inheritance.supervisor, &mut [0; 1]) {
        Ok(_) => Err(gone()),
        Err(_) => Ok(()),
    }
}

fn restrict(spec: &Spec, inheritance: &Inheritance<'_>) -> Attempt<()> {
    let core = getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: Some(0), ..core }).doing("limiting core dumps")?;
    if let Some(max) = inheritance.threads_max {
        let now = getrlimit(Resource::Nproc);
        let lower = |limit: Option<u64>| Some(limit.map_or(max, |limit| limit.min(max)));
        let limit = Rlimit { current: lower(now.current), maximum: lower(now.maximum) };
        setrlimit(Resource::Nproc, limit).doing("limiting threads")?;
    }
    let domain = match spec.personality {
        Personality::Native => NO_RANDOMIZE,
        Personality::Linux32 => NO_RANDOMIZE | LINUX32,
    };
    sys::personality(domain).doing("setting the personality")?;
    sys::reset_signals();
    umask(Mode::from_raw_mode(0o022));
    chdir(&spec.build_dir).doing("changing to the build directory")?;
    set_no_new_privs(true).doing("setting no_new_privs")?;
    if spec.network {
        // Kernels before 6.12 can't; nothing else depends on it.
        sys::scope_abstract_sockets().doing("scoping abstract sockets")?;
    }
    sys::install_filter(inheritance.filter).doing("installing the system call filter")
}

/// Becomes the builder. Comes back with an exit code if there is nothing to execute.
fn start(spec: &Spec, builtin: Builtin) -> Attempt<i32> {
    let (path, argv) = match &spec.program {
        Program::Exec { path, argv } => (path, argv),
        Program::Builtin { name, payload } => {
            sys::close_from(3).doing("closing descriptors")?;
            let code = builtin(name, payload);
            // The exit code says what happened; a log that can't be written changes nothing.
            let _ = std::io::stdout().flush();
            return Ok(code);
        }
    };
    let strings =
        |strings: &[Vec<u8>]| -> Attempt<Vec<CString>> { strings.iter().map(|string| c_string(string)).collect() };
    let env: Vec<Vec<u8>> = spec.env.iter().map(|(name, value)| [name, b"=".as_slice(), value].concat()).collect();
    let (argv, env) = (strings(argv)?, strings(&env)?);
    sys::close_on_exec_from(3).doing("closing descriptors")?;
    let error = sys::execute(&c_string(path)?, &argv, &env);
    let path = String::from_utf8_lossy(path);
    let text = format!("error: executing '{path}': {}\n", reason(&error));
    // Goes where the builder's own last words would go.
    let _ = std::io::stderr().write_all(text.as_bytes());
    Ok(FAILURE_CODE)
}

fn c_string(bytes: &[u8]) -> Attempt<CString> {
    CString::new(bytes).map_err(|_| Failure::new(format!("a zero byte in '{}'", String::from_utf8_lossy(bytes))))
}
