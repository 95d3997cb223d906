//! Caches behind a node: another node, and files that a real Nix put on a web server.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;

use shoal_tests::web::Web;
use shoal_tests::{Machine, Nix, Node, Place, Remote, built, shapes};

by_each_version!(
    passes_on_what_another_node_built,
    passes_on_what_a_static_cache_has,
    builds_on_inputs_that_only_an_upstream_has,
    asks_what_can_be_substituted,
    knows_where_outputs_came_out_elsewhere,
    is_a_cache_in_front_of_others,
);

/// Without this a client remembers for an hour what it once heard of a cache.
const FRESH: [&str; 6] = ["--option", "narinfo-cache-negative-ttl", "0", "--option", "narinfo-cache-positive-ttl", "0"];

/// A node that nobody built on, behind `url`.
fn node_behind(machine: &Machine, url: &str, key: &str) -> Node {
    let flags = ["--upstream", url, "--trusted-public-key", key];
    Node::start_with(&[machine], &flags)
}

/// The node's builds that ever ended.
fn builds(node: &Node) -> usize {
    node.shoal("builds --json").ok().json().as_array().map_or(0, Vec::len)
}

/// A directory that a real client filled, as a site: attributes of the shapes, signed, with what they refer to.
struct StaticCache {
    place: Place,
    web: Web,
    public_key: String,
}

impl StaticCache {
    /// Closures of the machine's own store.
    fn of(machine: &Machine, compression: &str, paths: &[String]) -> StaticCache {
        let place = Place::new("c");
        let (key, public) = (machine.path("cache-key"), machine.path("cache-key.pub"));
        machine.local("nix-store").args(["--generate-binary-cache-key", "static-1"]).arg(&key).arg(&public).ok();
        let dir = place.path().display();
        let url = format!("file://{dir}?compression={compression}&secret-key={}", key.display());
        machine.local("nix").args(["copy", "--to", &url]).args(paths).ok();
        let public_key = fs::read_to_string(public).unwrap().trim().to_string();
        let web = Web::start(place.path());
        StaticCache { place, web, public_key }
    }

    /// The log of a build on `machine`, and the derivation: older clients look for that first.
    fn add_log(&self, machine: &Machine, drv_path: &str) {
        let url = format!("file://{}?secret-key={}", self.place.path().display(), machine.path("cache-key").display());
        machine.local("nix").args(["copy", "--derivation", "--to", &url, drv_path]).ok();
        machine.local("nix").args(["store", "copy-log", "--to", &url, drv_path]).ok();
    }
}

fn passes_on_what_another_node_built(nix: &Nix) {
    let machine = Machine::new(nix);
    let first = Node::start(&[&machine]);
    let wanted = shapes::build_on(&machine, &first, Remote::SshNg, &["chain", "twice"]);
    let key = first.shoal("key show").ok().text().to_string();
    let node = node_behind(&machine, &first.ready().http, &key);
    // Over HTTP, as a substituter.
    let reader = Machine::new(nix);
    let copy =
        reader.local("nix").args(["copy", "--from", &node.ready().http, "--option", "trusted-public-keys", &key]);
    copy.args(FRESH).args(&wanted).ok();
    wanted.iter().for_each(|path| assert!(reader.real_path(path).exists()));
    reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
    // Over ssh, as a store to build in: nothing is built again.
    assert_eq!(shapes::build_on(&machine, &node, Remote::SshNg, &["chain", "twice"]), wanted);
    assert_eq!(builds(&node), 0, "{}", node.log());
    let known = node.paths();
    let ours = |path: &String| known.iter().find(|known| known["path"] == path.as_str()).unwrap();
    for path in &wanted {
        let name = key.split(':').next().unwrap();
        assert!(ours(path)["signatures"][0].as_str().unwrap().starts_with(name), "{}", ours(path));
    }
    let status = node.shoal("status --json").ok().json();
    assert_eq!(status["upstreams"][0]["state"], "up", "{status}");
    assert!(status["upstreams"][0]["fetched_paths"].as_u64().unwrap() >= 2, "{status}");
    let status = node.shoal("status").ok();
    assert!(status.stdout.contains("upstream") && status.stdout.contains(" up"), "{status}");
}

fn passes_on_what_a_static_cache_has(nix: &Nix) {
    for compression in ["xz", "zstd", "br", "bzip2", "none"] {
        let machine = Machine::new(nix);
        let wanted = shapes::build_locally(&machine, &["chain", "twice", "outputs"]);
        let cache = StaticCache::of(&machine, compression, &wanted);
        let node = node_behind(&machine, &cache.web.url(), &cache.public_key);
        let reader = Machine::new(nix);
        let copy = reader.local("nix").args(["copy", "--from", &node.ready().http]);
        copy.args(["--option", "trusted-public-keys", &cache.public_key]).args(FRESH).args(&wanted).ok();
        reader.local("nix-store").args(["--verify", "--check-contents"]).ok();
        reader
            .local("nix")
            .args(["store", "verify", "-r", "--sigs-needed", "1"])
            .args(["--option", "trusted-public-keys", &cache.public_key])
            .args(&wanted)
            .ok();
        assert_eq!(shapes::build_on(&machine, &node, Remote::SshNg, &["chain", "twice", "outputs"]), wanted);
        assert_eq!(builds(&node), 0, "{compression}: {}", node.log());
        // It stays when the cache goes.
        drop(cache);
        let again = Machine::new(nix);
        let copy = again.local("nix").args(["copy", "--from", &node.ready().http, "--no-check-sigs"]);
        copy.args(FRESH).args(&wanted).ok();
    }
}

/// The inputs of a build are in the cache and nowhere else; what is built is not.
fn builds_on_inputs_that_only_an_upstream_has(nix: &Nix) {
    let machine = Machine::new(nix);
    let inputs = shapes::build_locally(&machine, &["hello"]);
    let cache = StaticCache::of(&machine, "zstd", &inputs);
    let node = node_behind(&machine, &cache.web.url(), &cache.public_key);
    let path = shapes::build_on(&machine, &node, Remote::SshNg, &["twice"]).remove(0);
    let ended = node.shoal("builds --json").ok().json();
    let ended: Vec<&str> = ended.as_array().unwrap().iter().map(|build| build["drv_path"].as_str().unwrap()).collect();
    assert!(ended.len() == 1 && ended[0].ends_with("-twice.drv"), "{ended:?}");
    let paths = node.paths();
    assert!([&path, &inputs[0]].iter().all(|path| paths.iter().any(|known| known["path"] == path.as_str())));
    // With the cache away, what it had is built.
    drop(cache);
    let other = shapes::build_command(&machine, &node, Remote::SshNg, "other", &["twice"]).ok();
    assert_eq!(built(&other).len(), 1);
}

/// What a client asks before it decides, and a path by its name alone.
fn asks_what_can_be_substituted(nix: &Nix) {
    let machine = Machine::new(nix);
    let wanted = shapes::build_locally(&machine, &["chain"]);
    let cache = StaticCache::of(&machine, "xz", &wanted);
    let node = node_behind(&machine, &cache.web.url(), &cache.public_key);
    let dry = machine.remote("nix-build", &node, Remote::SshNg).args(["--dry-run"]);
    let dry = dry.args(shapes::args(&machine, "", &["chain"])).ok();
    assert!(dry.stderr.contains("will be fetched") && !dry.stderr.contains("will be built"), "{dry}");
    assert!(dry.stderr.contains(&wanted[0]), "{dry}");
    assert!(node.paths().iter().all(|known| known["path"] != wanted[0].as_str()));
    let realised = machine.remote("nix-store", &node, Remote::SshNg).args(["--realise", &wanted[0]]).ok();
    assert_eq!(realised.text(), wanted[0]);
    let copying = format!("copying path '{}' from '{}'", wanted[0], cache.web.url());
    assert!(realised.stderr.contains(&copying), "{realised}");
    assert!(node.paths().iter().any(|known| known["path"] == wanted[0].as_str()));
    let nowhere = format!("/nix/store/{}-nowhere", "0".repeat(32));
    let missing = machine.remote("nix-store", &node, Remote::SshNg).args(["--realise", &nowhere]).fails();
    assert!(missing.stderr.contains("nowhere"), "{missing}");
}

/// A client sees one cache: what it has itself, what another node has and what a static cache has.
fn is_a_cache_in_front_of_others(nix: &Nix) {
    let (builder, local) = (Machine::new(nix), Machine::new(nix));
    let first = Node::start(&[&builder]);
    let first_key = first.shoal("key show").ok().text().to_string();
    let mut wanted = shapes::build_on(&builder, &first, Remote::SshNg, &["chain"]);
    let logged = [
        shapes::instantiate_on(&builder, &first, Remote::SshNg, "hello"),
        local.local("nix-instantiate").args(shapes::args(&local, "", &["brief"])).ok().text().to_string(),
    ];
    wanted.extend(shapes::build_locally(&local, &["twice", "outputs", "brief"]));
    let cache = StaticCache::of(&local, "xz", &wanted[1..]);
    cache.add_log(&local, &logged[1]);
    let keys = format!("{first_key} {}", cache.public_key);
    let flags = [
        ["--upstream", &first.ready().http, "--trusted-public-key", &first_key],
        ["--upstream", &cache.web.url(), "--trusted-public-key", &cache.public_key],
    ];
    let node = Node::start_with(&[&builder], flags.as_flattened());
    let url = &node.ready().http;
    let user = Machine::new(nix);
    let config = format!("substituters = {url}\ntrusted-public-keys = {keys}\nexperimental-features = nix-command\n");
    let client = |program: &str| user.local(program).env("NIX_CONFIG", &config);
    let all = ["chain", "twice", "outputs", "brief"];
    let build = client("nix-build").args(["--no-out-link", "--max-jobs", "0"]).args(shapes::args(&user, "", &all));
    assert_eq!(build.ok().lines(), wanted);
    user.local("nix-store").args(["--verify", "--check-contents"]).ok();
    client("nix").args(["store", "verify", "-r", "--store", url, "--sigs-needed", "1"]).args(&wanted).ok();
    let signed = client("nix").args(["path-info", "--sigs", "--store", url]).args(&wanted).ok();
    let names = keys.split(' ').map(|key| key.split(':').next().unwrap()).collect::<Vec<_>>();
    assert!(signed.lines().iter().all(|line| names.iter().any(|name| line.contains(name))), "{signed}");
    for (drv_path, words) in logged.iter().zip(["hello from the builder", "begun"]) {
        let log = client("nix").args(["log", "--store", url, drv_path]).ok();
        assert!(log.stdout.contains(words), "{log}");
    }
    // What is put here is here and not there.
    let token = node.shoal("token create --role admin").ok().text().to_owned();
    let netrc = user.path("netrc");
    fs::write(&netrc, format!("machine 127.0.0.1 login any password {token}\n")).unwrap();
    let own = user.local("nix-build").arg("--no-out-link").args(shapes::args(&user, "own", &["hello"])).ok();
    client("nix").args(["copy", "--netrc-file"]).arg(&netrc).args(["--to", url, own.text()]).ok();
    let has = |node: &Node| node.paths().iter().any(|known| known["path"] == own.text());
    assert!(has(&node) && !has(&first));
    let metrics = user_reads(url, "/metrics");
    assert!(metrics.contains(&format!("shoal_upstream_fetched_paths_total{{upstream=\"{}/\"}}", cache.web.url())));
}

/// A page of a node's, by hand.
fn user_reads(url: &str, path: &str) -> String {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Outputs whose paths follow from their contents: the cache says where they came out, signed.
fn knows_where_outputs_came_out_elsewhere(nix: &Nix) {
    const FEATURES: [&str; 3] = ["--option", "extra-experimental-features", "ca-derivations"];
    let machine = Machine::new(nix);
    let (key, public) = (machine.path("cache-key"), machine.path("cache-key.pub"));
    machine.local("nix-store").args(["--generate-binary-cache-key", "static-1"]).arg(&key).arg(&public).ok();
    let local = machine.local("nix-build").arg("--no-out-link").args(FEATURES).args(["--option", "secret-key-files"]);
    let local = local.arg(&key).args(shapes::args(&machine, "", &["onFloating"])).ok();
    let place = Place::new("c");
    let installable = ["-f", &shapes::expression(&machine, "")[0]].map(String::from);
    let arguments = shapes::expression(&machine, "").split_off(1);
    let copy = machine.local("nix").args(["copy", "--to", &format!("file://{}", place.path().display())]);
    copy.args(FEATURES).args(installable).args(arguments).args(["onFloating", "floating"]).ok();
    let web = Web::start(place.path());
    let node = node_behind(&machine, &web.url(), fs::read_to_string(&public).unwrap().trim());
    let there = machine.build(&node, Remote::SshNg, &shapes::expression(&machine, ""), &["onFloating"]);
    assert_eq!(built(&there.args(FEATURES).ok()), built(&local), "{}", node.log());
    assert_eq!(builds(&node), 0, "{}", node.log());
    // Over HTTP, from a node that has asked for nothing yet.
    let node = node_behind(&machine, &web.url(), fs::read_to_string(&public).unwrap().trim());
    let reader = Machine::new(nix);
    let config = format!(
        "substituters = {}\ntrusted-public-keys = {}\n",
        node.ready().http,
        fs::read_to_string(&public).unwrap().trim()
    );
    let build = reader.local("nix-build").env("NIX_CONFIG", config).args(["--no-out-link", "--max-jobs", "0"]);
    let build = build.args(FEATURES).args(shapes::args(&reader, "", &["onFloating"])).ok();
    assert_eq!(built(&build), built(&local), "{build}");
}

#[test]
fn a_client_may_want_no_substitutes() {
    let machine = Machine::new(&Nix::newest());
    let wanted = shapes::build_locally(&machine, &["hello"]);
    let cache = StaticCache::of(&machine, "zstd", &wanted);
    for (substitute, expected) in [("true", 0), ("false", 1)] {
        let node = node_behind(&machine, &cache.web.url(), &cache.public_key);
        let build = machine.build(&node, Remote::Unix, &shapes::expression(&machine, ""), &["hello"]);
        assert_eq!(built(&build.args(["--option", "substitute", substitute]).ok()), wanted);
        assert_eq!(builds(&node), expected, "{substitute}: {}", node.log());
    }
}

/// The build hook leaves the copying of inputs to the builder, which has an upstream.
#[test]
fn a_builder_fetches_inputs_itself() {
    let machine = Machine::new(&Nix::newest());
    let inputs = shapes::build_locally(&machine, &["hello"]);
    let cache = StaticCache::of(&machine, "zstd", &inputs);
    let node = node_behind(&machine, &cache.web.url(), &cache.public_key);
    let store = machine.store(&node, Remote::SshNg);
    let build = machine.near("nix-build", &node).arg("--no-out-link").args(shapes::args(&machine, "", &["twice"]));
    let build = build.args(["--builders", &format!("{store} x86_64-linux"), "--max-jobs", "0"]);
    let build = build.args(["--option", "builders-use-substitutes", "true", "-vvv"]).ok();
    let status = node.shoal("status --json").ok().json();
    assert!(status["upstreams"][0]["fetched_paths"].as_u64().unwrap() >= 1, "{status}\n{build}");
    assert_eq!(builds(&node), 1);
}
