# What the module promises, each on virtual machines. They take KVM: nix build .#checks.x86_64-linux.nixos-<name>
{ pkgs, module }:

let
  secret = "/etc/shoal-mesh-secret";
  # A key for tests, and no secret therefore.
  keys = pkgs.runCommand "keys" { nativeBuildInputs = [ pkgs.openssh ]; } ''
    mkdir $out && ssh-keygen -q -t ed25519 -N "" -f $out/id
  '';
  node = { lib, ... }: {
    imports = [ module ];
    services.shoal = {
      enable = true;
      openFirewall = true;
      authorizedKeys = [ (lib.fileContents "${keys}/id.pub") ];
    };
    virtualisation.memorySize = 2048;
  };
  client = {
    nix.settings.experimental-features = [ "nix-command" ];
    system.activationScripts.key = "install -Dm600 ${keys}/id /root/.ssh/id_ed25519";
    programs.ssh.extraConfig = ''
      StrictHostKeyChecking accept-new
    '';
    environment.etc."try.nix".text = ''
      derivation {
        name = "try"; system = "${pkgs.stdenv.hostPlatform.system}"; builder = "/bin/sh";
        args = [ "-c" "echo built > $out" ];
      }
    '';
  };
  ready = machine: ''
    ${machine}.wait_for_unit("shoal.service")
    ${machine}.wait_for_open_port(8080)
  '';
  build = node: ''client.succeed("NIX_SSHOPTS='-p 2222' nix-build --no-out-link /etc/try.nix --store ssh-ng://nix@${node}")'';
  test = name: attrs: pkgs.testers.runNixOSTest ({ name = "shoal-${name}"; } // attrs);
in
{
  # A client without configuration builds on a node that has a line of it.
  builds = test "builds" {
    nodes = { one = node; inherit client; };
    testScript = ''
      start_all()
      ${ready "one"}
      path = ${build "one"}.strip()
      assert "built" in client.succeed(f"nix-store --store http://one:8080 --dump {path}")
    '';
  };

  # Nodes with one secret are one store, and what they share is in no log and not in the Nix store.
  mesh = test "mesh" {
    nodes =
      let
        member = other: { imports = [ node ]; services.shoal = { meshSecretFile = secret; settings.peer-dns = [ other ]; }; };
      in
      { one = member "two"; two = member "one"; inherit client; };
    testScript = ''
      one.start()
      one.succeed("shoal mesh create --secret-file ${secret}")
      text = one.succeed("cat ${secret}")
      two.start()
      two.succeed("cat > ${secret} <<'END'\n" + text + "END")
      for machine in one, two:
          machine.succeed("systemctl restart shoal")
      ${ready "one"}
      ${ready "two"}
      one.wait_until_succeeds("shoal peers --json | grep -q two")
      client.start()
      path = ${build "one"}.strip()
      two.wait_until_succeeds(f"curl -sf http://localhost:8080/{path[11:43]}.narinfo")
      for machine in one, two:
          machine.fail("journalctl -u shoal | grep -F '" + text.strip() + "'")
    '';
  };

  # A build goes on while its node is restarted.
  restart = test "restart" {
    nodes = { one = node; inherit client; };
    testScript = ''
      start_all()
      ${ready "one"}
      client.succeed("sed 's/echo built/read -t 20 x < \\/dev\\/zero; echo built/' /etc/try.nix > /tmp/slow.nix")
      client.execute("NIX_SSHOPTS='-p 2222' nix-build --no-out-link /tmp/slow.nix --store ssh-ng://nix@one >&2 &")
      one.wait_until_succeeds("shoal builds --json | grep -q running")
      one.succeed("systemctl kill -s INT shoal", "systemctl kill -s INT shoal")
      ${ready "one"}
      one.succeed("shoal builds --json | grep -q running")
    '';
  };

  # systemd has the doors: a client waits for a node that is not there yet.
  doors = test "doors" {
    nodes = { one = { imports = [ node ]; services.shoal.socketActivation = true; }; inherit client; };
    testScript = ''
      start_all()
      ${ready "one"}
      one.succeed("systemctl stop shoal.service")
      ${build "one"}
      one.succeed("systemctl is-active shoal.service")
    '';
  };

  # A node that builds nothing runs without a privilege.
  cache = test "cache" {
    nodes.one = { imports = [ node ]; services.shoal.settings.no-build = true; };
    testScript = ''
      ${ready "one"}
      pid = one.succeed("systemctl show -P MainPID shoal").strip()
      one.succeed(f"grep -q '^CapEff:\\s*0000000000000000' /proc/{pid}/status")
      one.succeed("curl -sf http://localhost:8080/nix-cache-info")
    '';
  };

  # Nix of a machine with services.shoal.client substitutes from the mesh and sends its builds there.
  client = test "client" {
    nodes = {
      one = node;
      client = { imports = [ client module ]; services.shoal.client = {
        enable = true;
        nodes.one = { cache = "http://one:8080"; systems = [ pkgs.stdenv.hostPlatform.system ]; sshKey = "/root/.ssh/id_ed25519"; };
      }; };
    };
    testScript = ''
      start_all()
      ${ready "one"}
      client.wait_for_unit("multi-user.target")
      client.succeed("nix-build --no-out-link --max-jobs 0 /etc/try.nix")
      assert "try" in one.succeed("shoal builds --json")
    '';
  };
}
