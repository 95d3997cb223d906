# Small derivations that need nothing but one static busybox. `salt` makes paths that nobody built before.
{ busybox, salt ? "", system ? "x86_64-linux" }:

let
  # busybox goes by its own name, so it needs a directory.
  seed = builtins.path { path = dirOf busybox; name = "seed"; filter = path: type: baseNameOf path == "busybox"; };
  shell = "${seed}/busybox";
  run = name: script: attrs: derivation ({
    inherit name system salt;
    builder = shell;
    args = [ "sh" "-euc" "bb=${shell}; ${script}" ];
  } // attrs);
  link = i: previous: run "link-${toString i}" "echo ${toString i} > $out; echo ${toString previous} >> $out" { };
in
rec {
  hello = run "hello" "echo hello from the builder; $bb mkdir $out; echo hello > $out/greeting; $bb ln -s $out/greeting $out/again" { };
  twice = run "twice" "$bb mkdir $out; $bb cat ${hello}/greeting ${hello}/greeting > $out/both; echo ${hello} > $out/from" { };
  # A script whose interpreter is in the store.
  program = run "program" "$bb mkdir -p $out/bin; echo '#!${shell} sh' > $out/bin/greet; echo 'exec ${shell} cat ${hello}/greeting' >> $out/bin/greet; $bb chmod 755 $out/bin/greet" { };
  chain = builtins.foldl' (previous: i: link i previous) hello (builtins.genList (i: i) 8);
  outputs = run "outputs" "echo out > $out; echo $out > $doc; $bb mkdir $dev; echo $doc > $dev/doc" { outputs = [ "out" "doc" "dev" ]; };
  fails = run "fails" "echo about to fail; exit 3" { };
  # Says when it runs, then waits to be killed.
  sleeps = run "sleeps" "echo now asleep; $bb sleep 1000; echo late > $out" { };
  brief = run "brief" "echo begun; $bb sleep 2; echo done > $out" { };
  # Takes its time where a build has more than one CPU.
  paced = run "paced" "echo begun; [ $NIX_BUILD_CORES = 1 ] || $bb sleep 8; echo done > $out" { };
  leisurely = run "leisurely" "echo begun; $bb sleep 8; echo done > $out" { };
  afterLeisurely = run "after-leisurely" "echo begun; $bb cat ${leisurely} > $out" { };
  lasting = run "lasting" "echo begun; $bb sleep 20; echo done > $out" { };
  # Says two hundred words, ten a breath.
  talks = run "talks" "for word in $($bb seq 0 199); do echo word $word; [ $((word % 10)) != 0 ] || $bb sleep 0.2; done; echo said > $out" { };
  # Work for several nodes.
  naps = map (i: run "nap-${toString i}" "echo nap ${toString i}; $bb sleep 0.5; echo ${toString i} > $out" { }) (builtins.genList (i: i) 20);
  slow = map (i: run "slow-${toString i}" "echo slow ${toString i}; $bb sleep 10; echo ${toString i} > $out" { }) (builtins.genList (i: i) 3);
  # Each layer needs all of the one before.
  mat = builtins.foldl' (below: layer: map (i: run "mat-${toString layer}-${toString i}" "$bb sleep 0.2; $bb mkdir $out; $bb cat ${builtins.concatStringsSep " " (map (dep: "${dep}/text") below)} > $out/text || :; echo ${toString i} ${toString below} >> $out/text" { }) (builtins.genList (i: i) 3)) [ ] (builtins.genList (i: i) 4);
  teapot = run "teapot" "echo > $out" { requiredSystemFeatures = [ "teapot" ]; };
  # One after the other, two seconds each.
  stages = builtins.foldl' (below: i: run "stage-${toString i}" "echo stage ${toString i}; $bb sleep 2; $bb cat ${below} > $out; echo ${toString i} >> $out" { }) brief (builtins.genList (i: i) 4);
  # Waits until it is killed, one for each node.
  asleep = map (i: run "asleep-${toString i}" "echo asleep; $bb sleep 1000; echo ${toString i} > $out" { }) (builtins.genList (i: i) 3);
  # Waits until it is told to read what it was given, of which it needs little.
  reads = run "reads" "echo waits; $bb sleep 3; echo reads; $bb tail -c 1 ${large} > $out" { };
  # 32 MiB that do not compress.
  large = run "large" "$bb head -c 33554432 /dev/urandom > $out" { };
  many = map (i: run "many-${toString i}" "echo ${toString i} > $out" { }) (builtins.genList (i: i) 20);
  hundreds = map (i: run "hundreds-${toString i}" "echo ${toString i} > $out" { }) (builtins.genList (i: i) 480);
  # More than a small disk takes.
  fat = run "fat" "echo begun; $bb head -c 167772160 /dev/zero > $out" { };
  # Has 200 MiB at once.
  hungry = run "hungry" "echo begun; $bb dd if=/dev/zero of=/dev/null bs=200M count=1; echo fed > $out" { };
  # Each for a node with the feature of that name, one after the other.
  alpha = run "alpha" "echo '@nix {\"action\":\"setPhase\",\"phase\":\"alphaPhase\"}' >&2; echo alpha says one; echo alpha says two; echo alpha > $out" { requiredSystemFeatures = [ "alpha" ]; };
  alphaSleeps = run "alpha-sleeps" "echo now asleep; $bb sleep 1000; echo late > $out" { requiredSystemFeatures = [ "alpha" ]; };
  betaSleeps = run "beta-sleeps" "echo now asleep; $bb sleep 1000; echo late > $out" { requiredSystemFeatures = [ "beta" ]; };
  # 24 MiB that do not compress, and who needs three bytes of them.
  alphaLarge = run "alpha-large" "$bb head -c 25165824 /dev/urandom > $out" { requiredSystemFeatures = [ "alpha" ]; };
  betaPeeks = run "beta-peeks" "$bb head -c 3 ${alphaLarge} > $out" { requiredSystemFeatures = [ "beta" ]; };
  # Needs all of them, late.
  betaReads = run "beta-reads" "echo waits; $bb sleep 3; $bb wc -c < ${alphaLarge} > $out" { requiredSystemFeatures = [ "beta" ]; };
  # Longer than what nodes send each other.
  long = run "long" "$bb wc -c < $textPath > $out" { passAsFile = [ "text" ]; text = builtins.concatStringsSep "" (builtins.genList (i: "all work and no play makes jack a dull boy ") 110000); };
  afterLong = run "after-long" "$bb cat ${long} > $out" { };
  onAlpha = run "on-alpha" "$bb cat ${alpha} > $out" { };
  beta = run "beta" "echo beta says one; $bb cat ${alpha}; echo beta > $out" { requiredSystemFeatures = [ "beta" ]; };
  alphaAgain = run "alpha-again" "$bb cat ${beta}; echo again > $out" { requiredSystemFeatures = [ "alpha" ]; };
  # Petabytes for whoever reads it, nothing for the disk.
  endless = run "endless" "echo made; $bb truncate -s 16000000000000 $out" { };
  says = run "says" "echo '@nix {\"action\":\"msg\",\"level\":0,\"msg\":\"a message\"}' >&2; echo > $out" { };
  silent = run "silent" "echo begun; $bb sleep 1000; echo > $out" { };
  chatty = run "chatty" "while :; do echo again and again; done" { };
  differs = run "differs" "$bb head -c 16 /dev/urandom > $out" { };
  # The second stands still where a build has one CPU.
  tardy = map (i: run "tardy-${toString i}" "echo begun; [ ${toString i}$NIX_BUILD_CORES != 21 ] || $bb sleep 1000; echo done > $out" { }) [ 1 2 ];
  # Two ways to the same contents, and one to others, and what needs them.
  ways = map ({ way, contents }:
    let
      ca = { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
      base = run "base" "echo way ${toString way}; echo ${contents} > $out" ca;
      above = run "above" "echo builds above; $bb cat ${base} > $out" ca;
    in
    run "top" "echo builds top; $bb cat ${above} > $out" { }) [
    { way = 1; contents = "contents"; }
    { way = 2; contents = "contents"; }
    { way = 3; contents = "others"; }
  ];
  # The same each time but for one of its files.
  uneven = run "uneven" "$bb mkdir -p $out/share; echo same > $out/share/same; $bb cat /proc/sys/kernel/random/uuid > $out/share/id" { };
  # Their paths are known only when they are built.
  floating = run "floating" "$bb mkdir $out; echo floats > $out/file" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  onFloating = run "on-floating" "echo ${floating} > $out" { __contentAddressed = true; outputHashMode = "recursive"; outputHashAlgo = "sha256"; };
  needsFailed = run "needs-failed" "echo ${fails} > $out" { };
  writable = run "writable" "$bb mkdir $out; $bb chmod 777 $out" { };
  pipe = run "pipe" "$bb mkfifo $out" { };
}
