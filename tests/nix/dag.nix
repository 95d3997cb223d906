# A random graph of `nodes` small derivations, the same for one `seed`, and one above all of it. What they hold follows from
# the graph alone; `salt` makes paths that nobody built before. Each builder naps for `nap` seconds.
{ busybox, nodes, seed, salt ? "", nap ? "0", system ? "x86_64-linux" }:
let
  shell = builtins.path { path = dirOf busybox; name = "seed"; filter = path: type: baseNameOf path == "busybox"; };
  bb = "${shell}/busybox";
  run = name: inputs: derivation {
    inherit name inputs salt system;
    builder = bb;
    args = [ "sh" "-euc" "echo ${name} begun; ${bb} sleep ${nap}; { echo ${name}; ${bb} cat $inputs /dev/null; } | ${bb} sha256sum > $out" ];
  };
  # Below `limit`, which is above 0.
  below = limit: of:
    let digits = builtins.substring 0 7 (builtins.hashString "sha256" "${seed} ${of}");
    in builtins.bitAnd (builtins.fromTOML "n = 0x${digits}").n 16777215 * limit / 16777216;
  reach = number: if number < 40 then number else 40;
  inputs = number: if number == 0 then [ ] else
    builtins.genList (nth: number - 1 - below (reach number) "${toString number} ${toString nth}") (below 4 "${toString number}");
  unique = numbers: map (key: (builtins.fromJSON key)) (builtins.attrNames (builtins.listToAttrs (map (number: { name = toString number; value = null; }) numbers)));
  all = builtins.genList (number: run "dag-${toString number}" (map (builtins.elemAt all) (unique (inputs number)))) nodes;
  needed = builtins.listToAttrs (map (number: { name = toString number; value = null; }) (builtins.concatLists (builtins.genList inputs nodes)));
  tops = builtins.filter (number: !(needed ? ${toString number})) (builtins.genList (number: number) nodes);
in
run "dag-top" (map (builtins.elemAt all) tops)
