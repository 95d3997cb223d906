# Derivations that do nothing: `nodes` of them, "independent" or in a "chain". `salt` makes them all new.
{ busybox, nodes, shape, salt, system ? "x86_64-linux" }:
let
  shell = builtins.path {
    name = "shell";
    path = dirOf busybox;
    filter = path: _: baseNameOf path == "busybox";
  };
  nothing = number: inputs: derivation {
    name = "n${toString number}";
    inherit inputs salt system;
    builder = "${shell}/busybox";
    args = [ "sh" "-c" "echo > $out" ];
  };
  numbers = builtins.genList (number: number) nodes;
in
{
  independent = map (number: nothing number [ ]) numbers;
  chain = builtins.foldl' (before: number: [ (nothing number before) ]) [ ] numbers;
}.${shape}
