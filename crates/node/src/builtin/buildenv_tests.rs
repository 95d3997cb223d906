//! Trees as real Nix 2.34.8 made them from the same packages.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use expect_test::expect;
use shoal_wire::nix::hash;
use shoal_wire::nix::nar::write::NarWriter;

use super::*;

const A: &str = "zbx98y7nksndycf1q1q323lcjqzdjgpq-a";
const B: &str = "hzzb3z8y173052426m0yl78ls0sn1q3n-b";
const C: &str = "g11y4024va8w5i8vlcxnylbcg1ns5wi1-c";
const D: &str = "w6z7g3xhydzrvxq5sm4g5kh5ablc96zw-d";
const P: &str = "yc1hpm2xkkyrdmr0903ip0gvbiz8iavz-p";
const Q: &str = "hsnbflnscagz551fg0ynwdli04h0i696-q";
const FILE: &str = "bz5mp54793flj6wxlimkw7vlhskwip8v-x";
const CLASH: &str = "9g43zckqiwcdcxd8xr4f62pb7kfxqx8c-clash";
const DIR_AT_FILE: &str = "bpkiiqcwmc3xlnk28snpk32pdvy9n1ns-dir-at-file";
const FILE_AT_DIR: &str = "b2rr1gv807xjbc5rcr4blddy2y1l2xbg-file-at-dir";
const MANIFEST: &str = "/nix/store/lh5kbadvw1yy1bb62142yjd0y6fimk49-manifest";

const NAR_OF_EVERYTHING: &str = "sha256-Z3Uk0Zc3tpjscw26Z5lNH7Wozvw2L7ID9vYo8avgmLw=";
const NAR_OF_A_TWICE: &str = "sha256-K6MBUq5iBoGEl/zOMB2WXge7RQVyQSVrzZAX3vz5y9Y=";
const NAR_OF_LOWER: &str = "sha256-2Xp0U7brlVgAwyyrzfejoJzErKkqc1326mA/X+oHziM=";
const NAR_OF_DIRECTORY_FIRST: &str = "sha256-iLBWgfJK7d2B9HgSLz0Lt8O823zaW5a9s3/QNdRXMFc=";
const NAR_OF_FILE_LAST: &str = "sha256-PS0am7d5JjM1kSWryu5BAeO+Wr1qo2wMTZBVgqAIcvE=";
const NAR_OF_NOTHING: &str = "sha256-Lj5YvnEgN+wUz+rrCF/cwjx1MY7SGTTOPizq7TDbHAU=";

/// A store directory of its own that holds the packages, all under `<root>/nix/store`.
struct Lab {
    root: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { root: tempfile::tempdir().unwrap() };
        lab.files(Q, &["lib/q", "bin/p", "share/man/man1/q.1"]);
        lab.files(P, &["bin/p", "bin/a"]);
        lab.propagate(P, &format!("{} ", lab.store(Q)));
        lab.files(A, &["bin/tool", "bin/a", "lib/liba.so", "share/info/dir", "share/info/a.info"]);
        lab.files(A, &["share/man/man1/a.1", ".hidden", "log", "manifest.json", "manifest.nix"]);
        lab.files(A, &["lib/perllocal.pod", "lib/log/x", "share/only-a/deep/file"]);
        lab.propagate(A, &format!(" {}\n", lab.store(P)));
        lab.link(A, "etc/dangling", "/nowhere");
        lab.link(A, "lib/python", "../share");
        lab.files(B, &["bin/b", "lib/libb.so", "lib/python/b.py", "share/man/man1/b.1", "share/man/man5/b.5"]);
        lab.link(B, "bin/bb", "b");
        lab.files(C, &["bin/tool", "share/doc/c", "lib/liba.so"]);
        lab.files(D, &["bin/d"]);
        fs::write(lab.store(FILE), "x").unwrap();
        lab.files(CLASH, &["bin/b"]);
        lab.files(DIR_AT_FILE, &["bin/b/inner"]);
        lab.files(FILE_AT_DIR, &["share/man"]);
        lab
    }

    fn store(&self, name: &str) -> String {
        format!("{}/nix/store/{name}", self.root.path().display())
    }

    fn place(&self, package: &str, path: &str) -> PathBuf {
        let place = Path::new(&self.store(package)).join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    }

    fn files(&self, package: &str, paths: &[&str]) {
        for path in paths {
            fs::write(self.place(package, path), path).unwrap();
        }
    }

    fn link(&self, package: &str, path: &str, target: &str) {
        symlink(target, self.place(package, path)).unwrap();
    }

    fn propagate(&self, package: &str, list: &str) {
        fs::write(self.place(package, "nix-support/propagated-user-env-packages"), list).unwrap();
    }

    fn out(&self) -> PathBuf {
        self.root.path().join("out")
    }

    /// Builds an environment of `(active, priority, packages)`.
    fn build(&self, packages: &[(&str, i32, &[&str])]) -> Result<(), String> {
        let mut text = String::new();
        for (active, priority, paths) in packages {
            text += &format!("{active} {priority} {}", paths.len());
            paths.iter().for_each(|path| text += &format!(" {}", self.store(path)));
            text += "\n";
        }
        self.build_text(&text)
    }

    /// Failures speak of `/nix/store` and `/out`, wherever the lab lies.
    fn build_text(&self, derivations: &str) -> Result<(), String> {
        let env = [("derivations", derivations), ("manifest", MANIFEST)];
        let env = env.map(|(name, value)| (name.into(), value.into()));
        let outputs = [("out".to_owned(), self.out())];
        let payload = Payload::new("env", &BTreeMap::new(), env.into(), outputs.into(), Path::new("/build"));
        build(&payload).map_err(|failure| failure.to_string().replace(self.root.path().to_str().unwrap(), ""))
    }

    /// Hash of the environment's NAR, with symlinks as if the lab's store were `/nix/store`.
    fn nar_hash(&self) -> String {
        let mut nar = NarWriter::new(Vec::new());
        self.dump(&mut nar, b"", &self.out());
        hash::Hash::sha256(hash::sha256(&nar.finish().unwrap())).to_sri()
    }

    fn dump(&self, nar: &mut NarWriter<Vec<u8>>, name: &[u8], path: &Path) {
        let kind = fs::symlink_metadata(path).unwrap();
        if kind.is_dir() {
            nar.directory(name).unwrap();
            for entry in names(path).unwrap().unwrap() {
                self.dump(nar, entry.as_bytes(), &path.join(&entry));
            }
            nar.end_directory().unwrap();
        } else {
            let target = fs::read_link(path).unwrap();
            let target = target.to_str().unwrap().replace(self.root.path().to_str().unwrap(), "");
            nar.symlink(name, target.as_bytes()).unwrap();
        }
    }
}

#[test]
fn merges_packages_as_nix_does() {
    let lab = Lab::new();
    lab.build(&[("true", 5, &[A]), ("true", 5, &[B]), ("true", 3, &[C]), ("false", 1, &[D])]).unwrap();
    assert_eq!(lab.nar_hash(), NAR_OF_EVERYTHING);
}

#[test]
fn a_package_counts_once_and_a_plain_file_not_at_all() {
    let lab = Lab::new();
    lab.build(&[("true", 5, &[A, A]), ("true", 7, &[FILE])]).unwrap();
    assert_eq!(lab.nar_hash(), NAR_OF_A_TWICE);
}

#[test]
fn no_packages_leave_the_manifest_alone() {
    let lab = Lab::new();
    lab.build(&[]).unwrap();
    assert_eq!(lab.nar_hash(), NAR_OF_NOTHING);
}

#[test]
fn the_lower_number_wins() {
    let lab = Lab::new();
    lab.build(&[("true", 5, &[B]), ("true", 4, &[CLASH])]).unwrap();
    assert_eq!(lab.nar_hash(), NAR_OF_LOWER);
}

#[test]
fn equal_priorities_collide() {
    let error = Lab::new().build(&[("true", 5, &[B]), ("true", 5, &[CLASH])]).unwrap_err();
    expect![[r#"
        Unable to build profile. There is a conflict for the following files:

          "/nix/store/9g43zckqiwcdcxd8xr4f62pb7kfxqx8c-clash/bin/b"
          "/nix/store/hzzb3z8y173052426m0yl78ls0sn1q3n-b/bin/b""#]]
    .assert_eq(&error);
}

#[test]
fn a_directory_does_not_give_way_to_a_file_of_lower_priority() {
    let lab = Lab::new();
    lab.build(&[("true", 5, &[DIR_AT_FILE]), ("true", 6, &[B])]).unwrap();
    assert_eq!(lab.nar_hash(), NAR_OF_DIRECTORY_FIRST);

    let lab = Lab::new();
    lab.build(&[("true", 5, &[B]), ("true", 6, &[FILE_AT_DIR])]).unwrap();
    assert_eq!(lab.nar_hash(), NAR_OF_FILE_LAST);
}

#[test]
fn directories_and_files_collide() {
    let error = Lab::new().build(&[("true", 5, &[B]), ("true", 6, &[DIR_AT_FILE])]).unwrap_err();
    expect![[r#"collision between "/nix/store/bpkiiqcwmc3xlnk28snpk32pdvy9n1ns-dir-at-file/bin/b" and non-directory "/nix/store/hzzb3z8y173052426m0yl78ls0sn1q3n-b/bin/b""#]].assert_eq(&error);

    let error = Lab::new().build(&[("true", 5, &[B, A]), ("true", 6, &[FILE_AT_DIR])]).unwrap_err();
    expect!["collision between non-directory '/nix/store/b2rr1gv807xjbc5rcr4blddy2y1l2xbg-file-at-dir/share/man' and directory '/out/share/man'"].assert_eq(&error);
}

#[test]
fn a_missing_package_is_an_error() {
    let error = Lab::new().build(&[("true", 5, &["00000000000000000000000000000000-x"])]).unwrap_err();
    expect!["cannot read directory '/nix/store/00000000000000000000000000000000-x': No such file or directory"]
        .assert_eq(&error);
}

#[test]
fn a_malformed_list_of_packages_is_an_error() {
    let lab = Lab::new();
    expect!["attribute 'derivations' ends within a package"].assert_eq(&lab.build_text("true 5 2 /one").unwrap_err());
    expect!["attribute 'derivations' ends within a package"].assert_eq(&lab.build_text("true").unwrap_err());
    expect!["attribute 'derivations' has 'high' for a priority"].assert_eq(&lab.build_text("true high 0").unwrap_err());
    expect!["attribute 'derivations' has '-1' for a number of outputs"]
        .assert_eq(&lab.build_text("true 1 -1").unwrap_err());
}

#[test]
fn missing_attributes_are_named() {
    let payload = |env: &[&str]| Payload {
        env: env.iter().map(|name| (name.as_bytes().to_vec(), Vec::new())).collect(),
        ..Payload::new("x", &BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), Path::new("/build"))
    };
    expect!["'builtin:buildenv' requires an 'out' output"].assert_eq(&build(&payload(&[])).unwrap_err().to_string());
    let with_out = Payload { outputs: [("out".to_owned(), "/nowhere".into())].into(), ..payload(&[]) };
    expect!["attribute 'derivations' missing"].assert_eq(&build(&with_out).unwrap_err().to_string());
}
