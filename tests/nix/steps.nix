# A derivation that takes a while in each of its steps: a big input, and eight times as big an output, of which each byte is one
# more than that of the input. So nobody has parts of it who has the input.
{ busybox, image }:

let
  seed = builtins.path { path = dirOf busybox; name = "seed"; filter = path: type: baseNameOf path == "busybox"; };
  big = builtins.path { path = image; name = "image"; };
in
derivation {
  name = "steps";
  system = "x86_64-linux";
  builder = "${seed}/busybox";
  args = [ "sh" "-euc" "bb=${seed}/busybox; echo begun; $bb sleep 1; for n in 0 1 2 3 4 5 6 7; do $bb tr '\\000-\\377' '\\001-\\377\\000' < ${big}; done > $out" ];
}
