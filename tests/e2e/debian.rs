//! The Debian package on a Debian machine, under its systemd: installed, used, restarted, upgraded and purged.
//!
//! It takes the package, which takes an optimised program: `deploy/debian/build` first.

use std::fs;
use std::time::Duration;

use shoal_tests::command::wait_for;
use shoal_tests::debian::Debian;
use shoal_tests::{Cmd, Machine, Nix, built, shapes};

const PATIENCE: Duration = Duration::from_secs(60);

fn socket(debian: &Debian) -> String {
    format!("unix://{}", debian.path("/run/shoal.sock").display())
}

/// A build there by a client outside.
fn build(debian: &Debian, machine: &Machine, salt: &str, attribute: &str) -> Cmd {
    let own = format!("local?root={}", machine.root().display());
    let cmd = machine.local("nix").args(["build", "--no-link", "--json", "-L", "--eval-store", &own, "--store"]);
    cmd.arg(socket(debian)).arg("-f").args(shapes::expression(machine, salt)).arg(attribute)
}

fn install(debian: &Debian) {
    debian.run("dpkg -i /root/shoal.deb").ok();
}

/// Which process of shoal systemd looks after.
fn main_pid(debian: &Debian) -> String {
    debian.property("shoal.service", "MainPID")
}

#[test]
fn the_package_is_installed_used_upgraded_and_purged() {
    let Some(debian) = Debian::boot() else { return };
    let machine = Machine::new(&Nix::newest());
    install(&debian);
    assert_eq!(debian.property("shoal.service", "ActiveState"), "inactive", "nothing runs that nobody started");
    debian.run("test -s /usr/share/man/man1/shoal.1.gz && shoal check-config").ok();
    println!("{}", debian.run("shoal doctor").run());
    debian.run("systemctl enable --now shoal.socket shoal.service").ok();

    // The doors are systemd's: a client waits for a node that is not there yet.
    debian.run("systemctl stop shoal.service").ok();
    let outputs = built(&build(&debian, &machine, "a", "twice").ok());
    assert_eq!(outputs.len(), 1);
    let first = main_pid(&debian);
    assert_ne!(first, "0", "the client's call started it");

    // One that dies comes back, and the build that it ran goes on.
    let mut killed = build(&debian, &machine, "a", "lasting").start();
    wait_for("a build that runs", PATIENCE, || {
        debian.run("shoal builds").run().stdout.contains("lasting").then_some(())
    });
    debian.run("systemctl kill --kill-whom=main --signal=KILL shoal.service").ok();
    killed.wait(PATIENCE);
    assert_eq!(built(&build(&debian, &machine, "a", "lasting").ok()).len(), 1);
    assert_ne!(main_pid(&debian), first);
    let journal = debian.run("journalctl --no-pager -o cat -u shoal.service").ok().stdout;
    assert!(journal.contains("going on with a build that an earlier run of this node started"), "{journal}");

    // A new version takes over from the old one, with what was stored, and the administrator's words stay.
    debian.run("echo 'max-jobs = 3' >> /etc/shoal/config.toml").ok();
    let before = main_pid(&debian);
    install(&debian);
    wait_for("the new node", PATIENCE, || {
        let pid = main_pid(&debian);
        (pid != before && debian.property("shoal.service", "ActiveState") == "active").then_some(())
    });
    assert_eq!(debian.property("shoal.socket", "ActiveState"), "active", "the doors stay open");
    let config = debian.run("shoal check-config").ok().stdout;
    let max_jobs = config.lines().find(|line| line.starts_with("max-jobs")).unwrap_or_default();
    assert_eq!(max_jobs.split_whitespace().nth(1), Some("3"), "{config}");
    let stored = debian.run("shoal paths").ok().stdout;
    assert!(outputs.iter().all(|path| stored.contains(path.as_str())), "{stored}");

    debian.run("systemctl disable --now shoal.socket shoal.service && dpkg --purge shoal").ok();
    assert!(!debian.path("/etc/shoal/config.toml").exists() && !debian.path("/usr/bin/shoal").exists());
    assert!(fs::read_dir(debian.data()).is_ok_and(|entries| entries.count() > 0), "the store is its owner's to delete");
}

#[test]
fn a_mount_under_systemd_outlives_the_node() {
    let Some(debian) = Debian::boot() else { return };
    let machine = Machine::new(&Nix::newest());
    install(&debian);
    debian.run("mkdir -p /mnt/store && echo 'mount = \"/mnt/store\"' >> /etc/shoal/config.toml").ok();
    debian.run("systemctl start shoal.socket shoal.service").ok();
    let outputs = built(&build(&debian, &machine, "a", "twice").ok());
    let file = outputs[0].replace("/nix/store", "/mnt/store") + "/both";
    let read = |when: &str| {
        let text = debian.run(&format!("cat {file}")).ok().stdout;
        assert_eq!(text, "hello\nhello\n", "{when}");
    };
    read("as it was built");
    debian.run("systemctl stop shoal.service").ok();
    read("without a node");
    debian.run("systemctl start shoal.service").ok();
    read("by the next node");
    let before = main_pid(&debian);
    debian.run("systemctl kill --kill-whom=main --signal=KILL shoal.service").ok();
    read("of one that was killed");
    wait_for("the next node", PATIENCE, || (![&before, "0"].contains(&&*main_pid(&debian))).then_some(()));
    let outputs = built(&build(&debian, &machine, "b", "hello").ok());
    debian.run(&format!("cat {}/greeting", outputs[0].replace("/nix/store", "/mnt/store"))).ok();
}
