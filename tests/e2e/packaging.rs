//! What people install shoal with: the NixOS module, the systemd unit, the chart.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use shoal_tests::command::Finished;
use shoal_tests::node::program;
use shoal_tests::place::{Place, repository};
use shoal_tests::{Cmd, Machine, Nix};

/// Each object is compared with a schema of some megabytes, in Python.
const CHART_PATIENCE: Duration = Duration::from_secs(300);

/// Whether a program is on this machine. Says what is skipped where it is not.
fn has(program: &str) -> bool {
    let has = std::env::var("PATH").unwrap_or_default().split(':').any(|dir| Path::new(dir).join(program).exists());
    if !has {
        println!("skipped: {program} is not on this machine");
    }
    has
}

fn module() -> Value {
    let file = repository().join("tests/nix/module.nix");
    let machine = Machine::new(&Nix::newest());
    machine.local("nix-instantiate").args(["--eval", "--strict", "--json"]).arg(file).ok().json()
}

fn texts(value: &Value) -> Vec<String> {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match value {
        Value::Array(values) => values.iter().map(text).collect(),
        Value::Null => Vec::new(),
        value => vec![text(value)],
    }
}

/// As NixOS writes the unit. The packages of the stand-in exist nowhere: this build's program stands for shoal, and
/// `/bin/true` for everything else.
fn unit_file(service: &Value) -> String {
    let real = |text: String| -> String {
        let words = text.split(' ').map(|word| match word.strip_prefix("/nix/store/") {
            Some(path) if path.ends_with("/bin/shoal") => program().display().to_string(),
            Some(_) => "/bin/true".into(),
            None => word.into(),
        });
        words.collect::<Vec<String>>().join(" ")
    };
    let mut lines = vec!["[Service]".to_owned()];
    for (key, value) in service.as_object().expect("a unit") {
        lines.extend(texts(value).into_iter().map(|text| format!("{key}={}", real(text))));
    }
    lines.join("\n") + "\n"
}

/// Both streams of `systemd-analyze verify`, without what is said of manual pages, which nobody installed.
fn verified(unit: &Path) -> (Finished, Vec<String>) {
    let finished = Cmd::new("systemd-analyze").args(["verify", "--man=no"]).arg(unit).run();
    let name = unit.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let about_it = |line: &&str| line.contains(&name);
    let complaints = finished.stderr.lines().filter(about_it).map(str::to_owned).collect();
    (finished, complaints)
}

fn takes(name: &str, text: &str) {
    takes_beside(&Place::new("unit"), name, text);
}

/// Of a unit that is for another one.
fn takes_with(name: &str, text: &str, other: &str, other_text: &str) {
    let place = Place::new("unit");
    fs::write(place.join(other), other_text).expect("a unit file");
    takes_beside(&place, name, text);
}

fn takes_beside(place: &Place, name: &str, text: &str) {
    let path = place.join(name);
    fs::write(&path, text).expect("a unit file");
    let (finished, complaints) = verified(&path);
    assert!(finished.status.success() && complaints.is_empty(), "{text}\n{finished}");
}

#[test]
fn the_module_gives_units_that_systemd_takes() {
    let module = module();
    if !has("systemd-analyze") {
        return;
    }
    takes("shoal-builder.service", &unit_file(&module["builder"]["unit"]));
    takes("shoal-cache.service", &unit_file(&module["cache"]["unit"]));
    let broken = unit_file(&module["cache"]["unit"]).replace("Type=notify", "Type=notified");
    let place = Place::new("unit");
    fs::write(place.join("shoal-broken.service"), broken).expect("a unit file");
    let (_, complaints) = verified(&place.join("shoal-broken.service"));
    assert!(!complaints.is_empty(), "what systemd does not know is found");
}

#[test]
fn the_module_is_what_its_options_say() {
    let module = module();
    let unit = &module["builder"]["unit"];
    let command = unit["ExecStart"].as_str().expect("a command");
    assert!(
        command.ends_with("serve --mesh-secret-file=%d/mesh-secret --secret-key-file=%d/signing-key-0"),
        "{command}"
    );
    assert_eq!(texts(&unit["LoadCredential"]), ["mesh-secret:/run/secrets/mesh", "signing-key-0:/run/secrets/key"]);
    let firewall = &module["builder"]["firewall"];
    assert_eq!(
        (texts(&firewall["allowedTCPPorts"]), texts(&firewall["allowedUDPPorts"])),
        (vec!["2222".into(), "8443".into()], vec!["7433".into(), "8443".into()])
    );
    let doors = &module["builder"]["doors"];
    assert_eq!(texts(&doors["listenStreams"]), ["[::]:2222", "[::]:8443", "/run/shoal.sock"]);
    assert_eq!(texts(&doors["wantedBy"]), ["sockets.target"]);
    assert!(module["cache"]["doors"]["listenStreams"].is_null(), "the node opens its doors itself unless it is told");
    assert!(module["builder"]["checked"].as_str().is_some_and(|script| script.contains("check-config --config")));
    let cache = &module["cache"]["unit"];
    assert_eq!((&cache["DynamicUser"], &cache["CapabilityBoundingSet"]), (&Value::from(true), &Value::from("")));
    assert!(module["cache"]["firewall"]["allowedTCPPorts"].is_null(), "a firewall is opened when somebody says so");
    assert_eq!(texts(&module["wrong"]).len(), 2, "secrets in settings, and half of HTTPS, are refused");
    let client = &module["client"];
    assert_eq!(texts(&client["nix"]["settings"]["substituters"]), ["http://mirror:8080", "http://node.lan:8080"]);
    let builders = client["nix"]["buildMachines"].as_array().expect("a list");
    assert_eq!(
        (builders.len(), &builders[0]["hostName"], &builders[0]["protocol"]),
        (1, &Value::from("node.lan"), &Value::from("ssh-ng"))
    );
    assert_eq!(texts(&client["ssh"]["knownHosts"]["node.lan"]["hostNames"]), ["[node.lan]:2222"]);
}

/// Of a copy: the repository holds what was built, and Nix would copy all of it.
#[test]
fn the_flake_shows_what_it_promises() {
    let place = Place::new("flake");
    let copy = |names: &[&str], to: &str| {
        fs::create_dir_all(place.join(to)).expect("a directory");
        for name in names {
            fs::copy(repository().join(to).join(name), place.join(to).join(name)).expect("a copy");
        }
    };
    copy(&["flake.nix", "Cargo.toml", "Cargo.lock"], "");
    copy(&["nixos-module.nix", "nixos-tests.nix"], "crates/node");
    copy(&["flake.nix", "lib.nix", "pkgs.nix"], "tests/nix/stand-in");
    let (flake, inputs) = (place.join(""), place.join("tests/nix/stand-in"));
    let machine = Machine::new(&Nix::newest());
    let show = machine.local("nix").args(["--extra-experimental-features", "nix-command flakes", "flake", "show"]);
    let show = show.args(["--json", "--no-write-lock-file", "--override-input", "nixpkgs"]);
    let shown = show.arg(format!("path:{}", inputs.display())).arg(format!("path:{}", flake.display())).ok().json();
    let checks = shown["checks"]["x86_64-linux"].as_object().expect("checks");
    for name in [
        "package",
        "lints",
        "format",
        "nixos-builds",
        "nixos-mesh",
        "nixos-restart",
        "nixos-doors",
        "nixos-cache",
        "nixos-client",
    ] {
        assert_eq!(checks[name]["type"], "derivation", "{name}");
    }
    for output in ["packages", "devShells", "nixosModules", "overlays"] {
        assert!(shown[output].is_object(), "{output}: {shown}");
    }
}

#[test]
fn the_debian_unit_is_one_that_systemd_takes() {
    if !has("systemd-analyze") {
        return;
    }
    let deploy = repository().join("deploy/systemd");
    let read = |name: &str| fs::read_to_string(deploy.join(name)).expect(name);
    let here = |text: String| text.replace("/usr/bin/shoal", &program().display().to_string());
    let unit = here(read("shoal.service"));
    takes("shoal.service", &unit);
    takes_with("shoal.socket", &read("shoal.socket"), "shoal.service", &unit);
    // As systemd reads a drop-in: after the unit.
    takes(
        "shoal.service",
        &(unit.replace("[Install]\nWantedBy=multi-user.target\n", "") + &here(read("cache-only.conf"))),
    );
}

#[test]
fn the_chart_passes_its_tests() {
    let tools = repository().join("target/tools/deploy");
    if !tools.join("complete").exists() {
        return println!("skipped: helm is not there; tests/deploy/get-tools fetches it");
    }
    let (chart, test) = (repository().join("deploy/chart/shoal"), repository().join("tests/deploy/chart_test.py"));
    let tool = |name: &str| tools.join("bin").join(name);
    let run = Cmd::new(tool("python")).arg(test).arg(&chart).arg(tool("helm")).arg(tool("kubernetes-validate"));
    let finished = run.patience(CHART_PATIENCE).ok();
    let asked = finished.stdout.lines().find_map(|line| line.split_once("metrics: ")).expect("metrics").1;
    let source = fs::read_to_string(repository().join("crates/node/src/http/metrics.rs")).expect("metrics.rs");
    for name in asked.split(' ') {
        assert!(source.contains(&format!("\"{name}\"")), "the dashboard asks for {name}, which no node tells");
    }
}

/// The configuration file that the chart writes is one that the program reads.
#[test]
fn the_charts_configuration_is_right() {
    let tools = repository().join("target/tools/deploy");
    if !tools.join("complete").exists() {
        return println!("skipped: helm is not there; tests/deploy/get-tools fetches it");
    }
    let place = Place::new("chart");
    let helm =
        Cmd::new(tools.join("bin/helm")).args(["template", "shoal"]).arg(repository().join("deploy/chart/shoal"));
    let rendered = helm.args(["--show-only", "templates/config.yaml", "--set", "settings.max-jobs=3"]).ok().stdout;
    let inside = rendered.split("config.toml: |\n").nth(1).and_then(|rest| rest.split("  authorized_keys:").next());
    let config: String = inside.expect("a file").lines().map(|line| format!("{}\n", line.trim())).collect();
    fs::write(place.join("config.toml"), &config).expect("a file");
    let shoal =
        Cmd::new(program()).arg("--config").arg(place.join("config.toml")).arg("--data-dir").arg(place.join("data"));
    let checked = shoal.args(["check-config", "--json"]).run();
    assert!(checked.status.success(), "{config}\n{checked}");
    assert!(checked.stdout.contains("shoal-mesh.default.svc"), "{checked}");
}
