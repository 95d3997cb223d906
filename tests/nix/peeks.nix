# Derivations with a big input: one reads the beginning of it, the other refers to it too.
{ busybox, image }:

let
  seed = builtins.path { path = dirOf busybox; name = "seed"; filter = path: type: baseNameOf path == "busybox"; };
  big = builtins.path { path = image; name = "image"; };
  run = name: script: derivation {
    inherit name;
    system = "x86_64-linux";
    builder = "${seed}/busybox";
    args = [ "sh" "-euc" script ];
  };
in
{
  peeks = run "peeks" "${seed}/busybox head -c 3 ${big} > $out";
  keeps = run "keeps" "${seed}/busybox head -c 3 ${big} > $out; echo ${big} >> $out";
}
