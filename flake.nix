{
  description = "A peer-to-peer build grid for Nix";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      systems = [ "x86_64-linux" "aarch64-linux" ];
      forEach = f: nixpkgs.lib.genAttrs systems (system: f nixpkgs.legacyPackages.${system});
      manifest = (builtins.fromTOML (builtins.readFile ./Cargo.toml)).workspace.package;

      shoal = pkgs: pkgs.rustPlatform.buildRustPackage {
        pname = "shoal";
        inherit (manifest) version;
        src = pkgs.lib.cleanSource ./.;
        cargoLock.lockFile = ./Cargo.lock;
        cargoBuildFlags = [ "-p" "shoal-node" ];
        # The end-to-end tests fetch real Nix clients; ./test runs them.
        cargoTestFlags = [ "--workspace" "--exclude" "shoal-tests" ];
        nativeBuildInputs = [ pkgs.pkg-config pkgs.installShellFiles ];
        buildInputs = [ pkgs.libseccomp ];
        postInstall = ''
          for shell in bash zsh fish; do
            $out/bin/shoal completions $shell > shoal.$shell
          done
          $out/bin/shoal man > shoal.1
          installShellCompletion --cmd shoal --bash shoal.bash --zsh shoal.zsh --fish shoal.fish
          installManPage shoal.1
        '';
        meta = {
          description = "A peer-to-peer build grid for Nix";
          license = pkgs.lib.licenses.asl20;
          mainProgram = "shoal";
          platforms = systems;
        };
      };
    in
    {
      packages = forEach (pkgs: rec {
        shoal = self.lib.shoal pkgs;
        default = shoal;
      });

      lib = { inherit shoal; };

      overlays.default = final: _: { shoal = shoal final; };

      nixosModules.default = {
        imports = [ ./crates/node/nixos-module.nix ];
        nixpkgs.overlays = [ self.overlays.default ];
      };

      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ (shoal pkgs) ];
          packages = [ pkgs.cargo pkgs.clippy pkgs.rustfmt pkgs.cargo-nextest pkgs.openssh ];
        };
      });

      checks = forEach (pkgs: {
        package = shoal pkgs;
        format = pkgs.runCommand "shoal-format" { nativeBuildInputs = [ pkgs.cargo pkgs.rustfmt ]; } ''
          cp -r ${pkgs.lib.cleanSource ./.} source && cd source && cargo fmt --all --check && touch $out
        '';
        lints = (shoal pkgs).overrideAttrs (old: {
          pname = "shoal-lints";
          nativeBuildInputs = old.nativeBuildInputs ++ [ pkgs.clippy ];
          buildPhase = "cargo clippy --workspace --all-targets --offline -- -D warnings";
          doCheck = false;
          installPhase = "touch $out";
          postInstall = "";
        });
      } // pkgs.lib.mapAttrs' (name: pkgs.lib.nameValuePair "nixos-${name}") (import ./crates/node/nixos-tests.nix {
        inherit pkgs;
        module = self.nixosModules.default;
      }));
    };
}
