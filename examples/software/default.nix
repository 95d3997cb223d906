# Real software from source, for trying a node out and for tests: no nixpkgs and no network in builds.
# It starts from one static busybox and Debian's tcc, builds its own tcc with that, and the rest with its own.
#
#   ./fetch DIR; nix-build --arg sources DIR -A lua
{ sources, system ? "x86_64-linux" }:

let
  file = name: builtins.path { path = sources + "/${name}"; inherit name; };
  seed = builtins.path { path = sources + "/seed"; name = "seed"; };

  # A derivation whose builder is a busybox shell script.
  run = name: script: attrs: derivation ({
    inherit name system;
    builder = "${seed}/busybox";
    args = [ "sh" "-euc" script ];
  } // attrs);

  tools = run "tools" ''
    bb=${seed}/busybox
    $bb mkdir -p $out/bin
    for applet in $($bb --list); do $bb ln -s $bb $out/bin/$applet; done
  '' { };

  unpacked = name: run name ''
    export PATH=${tools}/bin
    mkdir $out
    dpkg-deb -x ${file "${name}.deb"} $out
  '' { };

  musl = run "musl" ''
    export PATH=${tools}/bin
    mkdir $out
    cp -r ${unpacked "musl"}/usr/include/x86_64-linux-musl $out/include
    cp -r ${unpacked "musl"}/usr/lib/x86_64-linux-musl $out/lib
  '' { };

  # Debian's tcc, run by Debian's loader, makes static programs against musl.
  bootstrap = run "bootstrap" ''
    export PATH=${tools}/bin
    lib=$(dirname $(find ${unpacked "libc"}/ -name libc.so.6 | head -n 1))
    tcc=${unpacked "tcc"}/usr/lib/x86_64-linux-gnu/tcc
    mkdir -p $out/bin
    cat > $out/bin/tcc <<E
    #!${tools}/bin/sh
    exec $lib/ld-linux-x86-64.so.2 --library-path $lib ${unpacked "tcc"}/usr/bin/tcc -B$tcc -nostdinc -I$tcc/include -I${musl}/include "\$@"
    E
    chmod 755 $out/bin/tcc
  '' { };

  # A package: its source unpacked, a tcc in PATH, then its script.
  package = name: attrs: derivation ({
    inherit name system tools;
    builder = "${seed}/busybox";
    args = [ "sh" "-eu" ./build.sh (./. + "/${name}.sh") ];
  } // attrs);
in
rec {
  tcc = package "tcc" { src = file "tcc_0.9.27+git20200814.62c30a4a.orig.tar.bz2"; inherit musl bootstrap; cc = bootstrap; };
  zlib = package "zlib" { src = file "zlib_1.2.13.dfsg.orig.tar.bz2"; cc = tcc; };
  lua = package "lua" { src = file "lua5.4_5.4.4.orig.tar.gz"; cc = tcc; };
  jq = package "jq" { src = file "jq_1.6.orig.tar.gz"; cc = tcc; };
  # Uses what was built: a Lua program whose output is compressed by a program that links zlib.
  report = package "report" { src = ./report; cc = tcc; inherit lua zlib jq; };
}
