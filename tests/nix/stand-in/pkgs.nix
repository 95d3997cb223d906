# As much of nixpkgs as this repository's flake and module use. Nothing of it can be built.
{ system, lib }:

let
  package = attrs: derivation
    ({ name = attrs.name or "${attrs.pname}-${attrs.version or "0"}"; inherit system; builder = "/none"; } // attrs.texts or { })
  // { meta = attrs.meta or { }; pname = attrs.pname or attrs.name; }
  // { overrideAttrs = change: package (attrs // change (attrs // { nativeBuildInputs = [ ]; })); };
  named = name: package { inherit name; };
in
rec {
  inherit lib;
  stdenv.hostPlatform = { inherit system; };
  rustPlatform.buildRustPackage = package;
  mkShell = attrs: package { name = "shell"; };
  runCommand = name: _: text: package { inherit name; texts = { inherit text; }; };
  writeText = name: text: package { inherit name; texts = { inherit text; }; };
  formats.toml = _: {
    type.finish = _: value: value;
    generate = name: value: package { inherit name; texts.text = builtins.toJSON value; };
  };
  testers.runNixOSTest = attrs: package { inherit (attrs) name; texts.script = attrs.testScript; };
  shoal = package { name = "shoal"; meta.mainProgram = "shoal"; };
} // lib.genAttrs [ "pkg-config" "installShellFiles" "libseccomp" "cargo" "clippy" "rustfmt" "cargo-nextest" "openssh" "fuse3" "coreutils" ] named
