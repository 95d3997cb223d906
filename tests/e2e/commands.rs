//! The commands, as people and scripts use them.

use shoal_tests::node::program;
use shoal_tests::{Cmd, Machine, Nix, Node, Place, Remote, shapes};

fn shoal(line: &str) -> Cmd {
    Cmd::new(program()).args(line.split_whitespace())
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let place = Place::new("x");
    let at = |line: &str| shoal(line).arg("--data-dir").arg(place.join("none"));
    let unreachable = at("status").run().expect_code(69);
    assert!(unreachable.stderr.contains("shoal serve"), "{unreachable}");
    at("use").run().expect_code(69);
    at("status --nonsense").run().expect_code(2);
    shoal("nonsense").run().expect_code(2);
    std::fs::write(place.join("c.toml"), "name = 'n'\nmaxjobs = 2\n").unwrap();
    let config = |line: &str| shoal(line).arg("--config").arg(place.join("c.toml"));
    let bad = config("check-config").run().expect_code(64);
    assert!(bad.stderr.contains("c.toml:2: maxjobs: unknown key; did you mean 'max-jobs'?"), "{bad}");
    config("serve").run().expect_code(64);
    shoal("check-config").env("SHOAL_CORES", "many").run().expect_code(64);
    let keyless = at("key show").run().expect_code(1);
    assert!(keyless.stderr.contains("shoal serve --data-dir"), "{keyless}");
}

#[test]
fn status_and_paths_in_words_and_in_json() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["hello"]).remove(0);
    let status = node.shoal("status --json").ok().json();
    assert_eq!(status["pid"], node.ready().pid);
    assert!(status["store"]["paths"].as_u64() >= Some(3), "{status}");
    assert!(node.shoal("status").ok().stdout.contains("builds"));
    let drv = shapes::instantiate_on(&machine, &node, Remote::SshNg, "fails");
    machine.remote("nix-store", &node, Remote::SshNg).args(["-r", &drv]).fails();
    let builds = node.shoal("builds --json").ok().json();
    assert_eq!((&builds[0]["state"], &builds[0]["drv_path"]), (&"failed".into(), &drv.into()), "{builds}");
    assert_eq!(builds[1]["state"], "built", "{builds}");
    let listed = node.shoal("paths").ok();
    assert!(listed.lines().contains(&path.as_str()), "{listed}");
    let one = node.shoal("paths --json").arg(&path).ok().json();
    assert_eq!(one.as_array().map(Vec::len), Some(1));
    assert!(one[0]["narHash"].as_str().is_some_and(|hash| hash.starts_with("sha256-")), "{one}");
    let unknown = node.shoal("paths").arg("/nix/store/0123456789abcdfghijklmnpqrsvwxyz-x").fails();
    assert!(unknown.stderr.contains("is not valid here"), "{unknown}");
}

#[test]
fn what_use_writes_makes_a_machine_build_on_the_node() {
    let machine = Machine::new(&Nix::newest());
    let node = Node::start(&[&machine]);
    let home = machine.home();
    let written = node.shoal("use --write --user --host 127.0.0.1").env("HOME", &home).ok();
    assert_eq!(written.lines().len(), 4, "{written}");
    let again = node.shoal("use --write --user --host 127.0.0.1").env("HOME", &home).ok();
    assert_eq!(again.text(), "", "{again}");
    // ssh takes the home directory from the user database, so it is told where the files are.
    let options = format!(
        "-F {} -o UserKnownHostsFile={} -o StrictHostKeyChecking=yes -o IdentitiesOnly=yes -i {}",
        home.join(".ssh/config").display(),
        home.join(".ssh/known_hosts").display(),
        machine.path("id").display()
    );
    let built = machine
        .local("nix-build")
        .env("NIX_SSHOPTS", options)
        .args(["--no-out-link", "--max-jobs", "0"])
        .args(shapes::args(&machine, "", &["twice"]))
        .ok();
    assert!(machine.real_path(built.text()).join("both").is_file());
    let on_node = node.paths();
    assert!(on_node.iter().any(|path| path["path"] == built.text()), "it was not built on the node");
}

#[test]
fn the_manual_and_completions_know_every_command() {
    let help = shoal("--help").ok();
    let commands: Vec<&str> = help
        .stdout
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()))
        .collect();
    assert!(commands.contains(&"serve") && commands.len() > 10, "{commands:?}");
    let manual = shoal("man").ok().stdout.replace("\\-", "-");
    for command in commands.iter().filter(|command| **command != "help") {
        assert!(manual.contains(&format!("SHOAL {}", command.to_uppercase())), "{command} is not in the manual");
    }
    for shell in ["bash", "zsh", "fish"] {
        let completions = shoal(&format!("completions {shell}")).ok();
        assert!(completions.stdout.contains("check-config"), "{shell}");
    }
    assert!(manual.contains("--max-jobs"), "keys of the configuration are not in the manual");
}

#[test]
fn doctor_looks_at_the_machine() {
    let place = Place::new("d");
    let checks = shoal("doctor --json --ssh 127.0.0.1:0 --data-dir").arg(place.path()).run().json();
    let names: Vec<&str> = checks.as_array().unwrap().iter().filter_map(|check| check["name"].as_str()).collect();
    for name in ["kernel", "clock", "sandbox-shell", "disk-space", "fsync", "open-files"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    for check in checks.as_array().unwrap() {
        assert!(check["verdict"] == "ok" || check["fix"] != "", "no fix: {check}");
    }
}
