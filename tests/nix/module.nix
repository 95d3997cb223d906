# The NixOS module as a machine sees it: a node that builds, one that only serves, a client. Prints what each comes to.
let
  lib = import ./stand-in/lib.nix;
  pkgs = import ./stand-in/pkgs.nix { system = "x86_64-linux"; inherit lib; };
  machine = settings: (lib.evalModules {
    modules = [ ../../crates/node/nixos-module.nix settings ];
    specialArgs = { inherit pkgs; };
  }).config;
  node = config: {
    unit = config.systemd.services.shoal.serviceConfig;
    doors = config.systemd.sockets.shoal or { };
    firewall = config.networking.firewall;
    assertions = map (assertion: assertion.message) (builtins.filter (assertion: !assertion.assertion) config.assertions);
    checked = config.environment.etc."shoal/config.toml".source.text;
  };
in
{
  builder = node (machine {
    services.shoal = {
      enable = true;
      openFirewall = true;
      meshSecretFile = "/run/secrets/mesh";
      socketActivation = true;
      signingKeyFiles = [ "/run/secrets/key" ];
      authorizedKeys = [ "ssh-ed25519 AAAA one" ];
      settings = { max-jobs = 4; http3 = true; http = "[::]:8443"; };
    };
  });
  cache = node (machine { services.shoal = { enable = true; settings.no-build = true; }; });
  wrong = (node (machine { services.shoal = { enable = true; settings.mesh-secret-file = "/etc/secret"; httpKeyFile = "/etc/key"; }; })).assertions;
  client =
    let
      config = machine {
        services.shoal.client = {
          enable = true;
          nodes."node.lan" = {
            cache = "http://node.lan:8080";
            publicKey = "node-1:AAAA";
            hostKey = "ssh-ed25519 AAAA";
            systems = [ "x86_64-linux" ];
          };
          nodes.mirror.cache = "http://mirror:8080";
        };
      };
    in
    { inherit (config) nix; inherit (config.programs) ssh; };
  off = (machine { }).systemd or { };
}
