{
  description = "Stands in for nixpkgs where that is not to be had";

  outputs = _:
    let lib = import ./lib.nix; in
    {
      inherit lib;
      legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (system: import ./pkgs.nix { inherit system lib; });
    };
}
