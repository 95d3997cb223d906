//! Good channels become what real Nix 2.34.8 made of the same tarballs.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use expect_test::expect;
use shoal_wire::nix::hash;
use tar::{Builder, EntryType, Header};

use super::*;
use crate::dump::dump;

const NAR_OF_CHANNEL: &str = "sha256-7s911sbV04YCoco2WR9pmoJJDWoLrOgHAKmmSJ7dr14=";
const NAR_OF_SINGLE_FILE: &str = "sha256-2fpYw4ZZj1TekWSNZxrIykUyos1AGhdFTfsoVZ7iCsw=";
const NAR_OF_REPLACED: &str = "sha256-w2cNpLXqU8yQB85AeGhSj8G7DTD09uyBkOw2V05FxUE=";

/// Appends a member whose name and target go in as they are, however bad.
fn member(tar: &mut Builder<Vec<u8>>, kind: EntryType, name: &str, mode: u32, target: &str, contents: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(contents.len() as u64);
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    tar.append(&header, contents).unwrap();
}

fn tarball(members: &[(EntryType, &str, u32, &str, &[u8])]) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    members
        .iter()
        .for_each(|&(kind, name, mode, target, contents)| member(&mut tar, kind, name, mode, target, contents));
    tar.into_inner().unwrap()
}

fn channel(prefix: &str) -> Vec<u8> {
    let at = |name: &str| format!("{prefix}{name}");
    let mut tar = Builder::new(Vec::new());
    member(&mut tar, EntryType::Directory, &at("nixpkgs/"), 0o755, "", b"");
    member(&mut tar, EntryType::Regular, &at("nixpkgs/default.nix"), 0o644, "", b"hi\n");
    member(&mut tar, EntryType::Regular, &at("nixpkgs/sub/run"), 0o4755, "", b"#!/bin/sh\n");
    member(&mut tar, EntryType::Symlink, &at("nixpkgs/sub/link"), 0o777, "../default.nix", b"");
    member(&mut tar, EntryType::Link, &at("nixpkgs/hard"), 0o644, &at("nixpkgs/default.nix"), b"");
    tar.into_inner().unwrap()
}

struct Lab(tempfile::TempDir);

impl Lab {
    fn new() -> Lab {
        Lab(tempfile::tempdir().unwrap())
    }

    fn out(&self) -> PathBuf {
        self.0.path().join("out")
    }

    fn unpack_as(&self, name: &str, tarball: &[u8]) -> Result<(), String> {
        let src = self.0.path().join("src");
        fs::write(&src, tarball).unwrap();
        let env = [("channelName", name), ("src", src.to_str().unwrap())];
        let env = env.map(|(name, value)| (name.into(), value.into()));
        let outputs = [("out".to_owned(), self.out())];
        let payload = Payload::new("chan", &BTreeMap::new(), env.into(), outputs.into(), Path::new("/build"));
        build(&payload).map_err(|failure| failure.to_string().replace(self.0.path().to_str().unwrap(), ""))
    }

    fn nar_hash(&self) -> String {
        hash::Hash::sha256(hash::sha256(&dump(&self.out(), Vec::new()).unwrap())).to_sri()
    }
}

fn unpack(tarball: &[u8]) -> Result<String, String> {
    let lab = Lab::new();
    lab.unpack_as("nixos", tarball).map(|()| lab.nar_hash())
}

fn refusal(members: &[(EntryType, &str, u32, &str, &[u8])]) -> String {
    unpack(&tarball(members)).unwrap_err()
}

fn compressed<W: Write>(tarball: &[u8], mut encoder: W, finish: impl FnOnce(W) -> io::Result<Vec<u8>>) -> Vec<u8> {
    encoder.write_all(tarball).unwrap();
    finish(encoder).unwrap()
}

#[test]
fn the_only_entry_gets_the_channels_name() {
    assert_eq!(unpack(&channel("")), Ok(NAR_OF_CHANNEL.to_owned()));
    assert_eq!(unpack(&channel("./")), Ok(NAR_OF_CHANNEL.to_owned()));
    assert_eq!(unpack(&channel("/")), Ok(NAR_OF_CHANNEL.to_owned()));
    let single = tarball(&[(EntryType::Regular, "single", 0o644, "", b"f\n")]);
    assert_eq!(unpack(&single), Ok(NAR_OF_SINGLE_FILE.to_owned()));
}

#[test]
fn every_usual_compression_is_understood() {
    let plain = channel("");
    let (first, second) = plain.split_at(700);
    let gzip = |part: &[u8]| {
        compressed(part, flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()), |e| e.finish())
    };
    let bzip2 = |part: &[u8]| {
        compressed(part, bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast()), |e| e.finish())
    };
    let xz = |part: &[u8]| compressed(part, liblzma::write::XzEncoder::new(Vec::new(), 1), |e| e.finish());
    let zstd = |part: &[u8]| zstd::encode_all(part, 1).unwrap();
    for compress in [&gzip as &dyn Fn(&[u8]) -> Vec<u8>, &bzip2, &xz, &zstd] {
        assert_eq!(unpack(&compress(&plain)), Ok(NAR_OF_CHANNEL.to_owned()));
        let in_two_streams = [compress(first), compress(second)].concat();
        assert_eq!(unpack(&in_two_streams), Ok(NAR_OF_CHANNEL.to_owned()));
        let whole = compress(&plain);
        unpack(&whole[..whole.len() / 2]).unwrap_err();
    }
}

#[test]
fn later_members_replace_earlier_ones() {
    let twice = tarball(&[
        (EntryType::XGlobalHeader, "pax_global_header", 0, "", b"19 comment=abcdefg\n"),
        (EntryType::Regular, "r/a", 0o644, "", b"x"),
        (EntryType::Regular, "r/a", 0o755, "", b"yy"),
        (EntryType::Symlink, "r/d", 0o777, "a", b""),
        (EntryType::Directory, "r/d", 0, "", b""),
    ]);
    assert_eq!(unpack(&twice), Ok(NAR_OF_REPLACED.to_owned()));
}

#[test]
fn members_that_reach_outside_are_refused() {
    let up = refusal(&[(EntryType::Regular, "r/../../evil", 0o644, "", b"x")]);
    expect!["failed to extract archive (Path contains '..')"].assert_eq(&up);
    let through =
        refusal(&[(EntryType::Symlink, "r/l", 0o777, "/tmp", b""), (EntryType::Regular, "r/l/evil", 0o644, "", b"x")]);
    expect!["failed to extract archive (Cannot extract through symlink or file: r/l/evil)"].assert_eq(&through);
    let hard = refusal(&[(EntryType::Link, "r", 0o644, "/etc/passwd", b"")]);
    expect!["failed to extract archive (Hard-link target '/etc/passwd' does not exist)"].assert_eq(&hard);
    let hard = refusal(&[
        (EntryType::Symlink, "r/etc", 0o777, "/etc", b""),
        (EntryType::Link, "r/passwd", 0o644, "r/etc/passwd", b""),
    ]);
    expect!["failed to extract archive (Hard-link target 'r/etc/passwd' does not exist)"].assert_eq(&hard);
}

#[test]
fn an_existing_file_outside_is_not_written_through_a_symlink() {
    let lab = Lab::new();
    let outside = lab.0.path().join("outside");
    fs::write(&outside, "mine").unwrap();
    let link = outside.to_str().unwrap();
    let members =
        tarball(&[(EntryType::Symlink, "r/l", 0o777, link, b""), (EntryType::Regular, "r/l", 0o644, "", b"evil")]);
    lab.unpack_as("nixos", &members).unwrap();
    assert_eq!(fs::read(&outside).unwrap(), b"mine");
    assert_eq!(fs::read(lab.out().join("nixos/l")).unwrap(), b"evil");
}

#[test]
fn devices_and_pipes_are_refused() {
    let refused = refusal(&[(EntryType::Fifo, "r/f", 0o644, "", b"")]);
    expect!["failed to extract archive (file 'r/f' has unsupported type '6')"].assert_eq(&refused);
}

#[test]
fn there_is_exactly_one_entry() {
    let two = refusal(&[(EntryType::Directory, "a", 0o755, "", b""), (EntryType::Directory, "b", 0o755, "", b"")]);
    expect!["channel tarball '/src' contains more than one file"].assert_eq(&two);
    expect!["channel tarball '/src' is empty"].assert_eq(&refusal(&[]));
    expect!["channel tarball '/src' is empty"].assert_eq(&unpack(b"").unwrap_err());
}

#[test]
fn damaged_archives_are_refused() {
    let channel = channel("");
    unpack(&channel[..700]).unwrap_err();
    unpack(&channel[..1024 + 1]).unwrap_err();
    unpack(&b"junk".repeat(300)).unwrap_err();
    unpack(b"junk").unwrap_err();
}

#[test]
fn a_channel_name_is_one_plain_name() {
    for name in ["a/b", "..", ".", "", "/", "a/"] {
        let error = Lab::new().unpack_as(name, &channel("")).unwrap_err();
        let expected = format!("channelName is not allowed to contain filesystem separators, got {name}");
        assert_eq!(error, expected);
    }
}
