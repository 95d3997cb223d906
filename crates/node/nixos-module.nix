# services.shoal: this machine as a node of a build grid. services.shoal.client: its Nix as a client of one.
{ config, lib, pkgs, ... }:

let
  inherit (lib) mkEnableOption mkIf mkMerge mkOption optional optionalAttrs optionalString types;
  cfg = config.services.shoal;
  client = cfg.client;

  toml = pkgs.formats.toml { };

  # What the configuration says is checked when the system is built, by the program that will read it.
  configFile = pkgs.runCommand "shoal.toml" { } ''
    cp ${toml.generate "shoal-unchecked.toml" cfg.settings} $out
    HOME=$TMPDIR ${lib.getExe cfg.package} --data-dir $TMPDIR check-config --config $out > /dev/null
  '';

  # Secrets are read by systemd, as root, and reach the node as files that nobody else sees.
  credentials =
    optional (cfg.meshSecretFile != null) "mesh-secret:${cfg.meshSecretFile}"
    ++ lib.imap0 (n: file: "signing-key-${toString n}:${file}") cfg.signingKeyFiles
    ++ optional (cfg.httpKeyFile != null) "http-key:${cfg.httpKeyFile}";
  secretFlags =
    optional (cfg.meshSecretFile != null) "--mesh-secret-file=%d/mesh-secret"
    ++ lib.imap0 (n: _: "--secret-key-file=%d/signing-key-${toString n}") cfg.signingKeyFiles
    ++ optional (cfg.httpKeyFile != null) "--http-key=%d/http-key";

  builds = !(cfg.settings.no-build or false);
  addressOf = key: default:
    let address = cfg.settings.${key} or "[::]:${toString default}"; in
    if address == "none" then null else address;
  portOf = key: default:
    let address = addressOf key default; in
    if address == null then null else lib.toInt (lib.last (lib.splitString ":" address));
  present = builtins.filter (port: port != null && port != 0);

  # What a node that serves and builds nothing can do without.
  withoutPrivileges = {
    DynamicUser = true;
    CapabilityBoundingSet = "";
    MemoryDenyWriteExecute = true;
    NoNewPrivileges = true;
    PrivateDevices = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RestrictAddressFamilies = [ "AF_INET" "AF_INET6" "AF_UNIX" "AF_NETLINK" ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallFilter = [ "@system-service" ];
    UMask = "0027";
  };

  # The sandbox mounts, makes namespaces and changes user ids. Nothing here gives the unit a mount namespace of its own, so
  # that a store mounted for the machine is seen by it, nor filters system calls, which builders would inherit.
  forBuilds = {
    Delegate = true;
    # A build runs under a supervisor of its own and outlives the node, which takes it up again.
    KillMode = "process";
    NoNewPrivileges = true;
    RestrictRealtime = true;
    CapabilityBoundingSet = [
      "~CAP_SYS_MODULE CAP_SYS_BOOT CAP_SYS_TIME CAP_SYS_RAWIO CAP_SYSLOG CAP_MAC_ADMIN CAP_MAC_OVERRIDE"
      "~CAP_AUDIT_CONTROL CAP_WAKE_ALARM CAP_BLOCK_SUSPEND"
    ];
  };

  node = types.submodule ({ name, ... }: {
    options = {
      host = mkOption {
        type = types.str;
        default = name;
        description = "Name or address of the node.";
      };
      sshPort = mkOption {
        type = types.port;
        default = 2222;
        description = "Port of its ssh door.";
      };
      cache = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "http://node.lan:8080";
        description = "Its binary cache, to substitute from; null to leave it out.";
      };
      publicKey = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "The key that signs what the mesh builds, as `shoal use` prints it.";
      };
      hostKey = mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "ssh-ed25519 AAAA…";
        description = "The node's ssh host key, as `shoal use` prints it.";
      };
      systems = mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "x86_64-linux" ];
        description = "Systems that derivations are sent there for; none to only substitute from it.";
      };
      features = mkOption {
        type = types.listOf types.str;
        default = [ "benchmark" "big-parallel" "ca-derivations" "nixos-test" ];
        description = "Features of the mesh's nodes.";
      };
      maxJobs = mkOption {
        type = types.ints.positive;
        default = 64;
        description = "Derivations sent there at once; the mesh spreads them over its nodes.";
      };
      sshKey = mkOption {
        type = types.nullOr types.str;
        default = null;
        description = "Private key that the Nix daemon shows there.";
      };
    };
  });
in
{
  options.services.shoal = {
    enable = mkEnableOption "shoal, a node of a build grid for Nix";

    package = mkOption {
      type = types.package;
      default = pkgs.shoal;
      defaultText = lib.literalExpression "pkgs.shoal";
      description = "The shoal to run.";
    };

    settings = mkOption {
      type = types.submodule { freeformType = toml.type; };
      default = { };
      example = { max-jobs = 4; upstream = [ "https://cache.nixos.org" ]; };
      description = "What goes into the configuration file; `shoal serve --help` describes every key.";
    };

    meshSecretFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      example = "/run/secrets/shoal-mesh";
      description = "File with the secret that the nodes of one mesh share, as `shoal mesh create --secret-file` writes it.";
    };

    signingKeyFiles = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "Files with keys that sign what is built here, in Nix's format.";
    };

    httpKeyFile = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "File with the private key of `settings.http-certificate`.";
    };

    authorizedKeys = mkOption {
      type = types.listOf types.str;
      default = [ ];
      description = "SSH keys that may use the node, as in an authorized_keys file; `shoal client` adds more where this is empty.";
    };

    socketActivation = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Have systemd open the doors, so that clients wait while the node starts or is replaced instead of being refused.
        The unix socket is then `/run/shoal.sock`.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Open the ports of ssh and http (TCP) and of the mesh (UDP).";
    };

    client = {
      enable = mkEnableOption "the nodes below for this machine's Nix";
      nodes = mkOption {
        type = types.attrsOf node;
        default = { };
        description = "Nodes by name.";
      };
    };
  };

  config = mkMerge [
    (mkIf cfg.enable {
      assertions = [
        {
          assertion = (cfg.httpKeyFile != null) == (cfg.settings ? http-certificate);
          message = "services.shoal: HTTPS takes both settings.http-certificate and httpKeyFile";
        }
        {
          assertion = !(cfg.settings ? mesh-secret-file || cfg.settings ? secret-key-file || cfg.settings ? http-key);
          message = "services.shoal: name secrets with meshSecretFile, signingKeyFiles and httpKeyFile; settings end up in the Nix store";
        }
      ];

      services.shoal.settings = optionalAttrs (cfg.authorizedKeys != [ ]) {
        authorized-keys = toString (pkgs.writeText "shoal-authorized-keys" (lib.concatLines cfg.authorizedKeys));
      };

      environment.systemPackages = [ cfg.package ];
      environment.etc."shoal/config.toml".source = configFile;

      networking.firewall = mkIf cfg.openFirewall {
        allowedTCPPorts = present [ (portOf "ssh" 2222) (portOf "http" 8080) ];
        allowedUDPPorts = present ([ (portOf "mesh" 7433) ]
          ++ optional (cfg.settings.http3 or false) (portOf "http" 8080));
      };

      systemd.sockets.shoal = mkIf cfg.socketActivation {
        description = "Doors of shoal";
        wantedBy = [ "sockets.target" ];
        listenStreams = present [ (addressOf "ssh" 2222) (addressOf "http" 8080) ] ++ [ "/run/shoal.sock" ];
        socketConfig = { SocketMode = "0666"; Backlog = 4096; };
      };

      systemd.services.shoal = {
        description = "shoal, a node of a build grid for Nix";
        documentation = [ "man:shoal(1)" ];
        wantedBy = [ "multi-user.target" ];
        wants = [ "network-online.target" ];
        after = [ "network-online.target" ];
        restartTriggers = [ configFile ];
        # For stores that an ordinary user mounts.
        path = optional builds pkgs.fuse3;
        serviceConfig = {
          Type = "notify";
          ExecStart = lib.concatStringsSep " " ([ "${lib.getExe cfg.package} serve" ] ++ secretFlags);
          ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
          LoadCredential = credentials;
          StateDirectory = "shoal";
          StateDirectoryMode = "0750";
          RuntimeDirectory = "shoal";
          Restart = "always";
          RestartSec = "2s";
          TimeoutStartSec = "5min";
          # Longer than drain-timeout: builds that run may end.
          TimeoutStopSec = "11min";
          LimitNOFILE = 1048576;
          TasksMax = "infinity";
        } // (if builds then forBuilds else withoutPrivileges);
      };
    })

    (mkIf client.enable (
      let
        nodes = builtins.attrValues client.nodes;
        builders = builtins.filter (node: node.systems != [ ]) nodes;
        known = lib.filterAttrs (_: node: node.hostKey != null) client.nodes;
        have = field: builtins.filter (value: value != null) (map (node: node.${field}) nodes);
      in
      {
        nix.settings.substituters = have "cache";
        nix.settings.trusted-public-keys = have "publicKey";
        nix.settings.builders-use-substitutes = true;
        nix.distributedBuilds = builders != [ ];
        nix.buildMachines = map
          (node: {
            hostName = node.host;
            protocol = "ssh-ng";
            sshUser = "nix";
            inherit (node) systems sshKey maxJobs;
            supportedFeatures = node.features;
          })
          builders;
        programs.ssh.knownHosts = builtins.mapAttrs
          (_: node: {
            hostNames = [ "[${node.host}]:${toString node.sshPort}" ];
            publicKey = node.hostKey;
          })
          known;
        # build-remote names no port.
        programs.ssh.extraConfig = lib.concatMapStrings
          (node: optionalString (node.sshPort != 22) ''
            Host ${node.host}
              Port ${toString node.sshPort}
          '')
          nodes;
      }
    ))
  ];
}
