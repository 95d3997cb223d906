# Derivations that do nothing: `nodes` of them, "independent", in a "chain", or a "dag" as `edges` has it (a JSON file:
# `inputs` of each, by number, and the `goals`). In a "speaking" chain each says a word. `salt` makes them all new.
{ busybox, nodes, shape, salt, edges ? null, system ? "x86_64-linux" }:
let
  shell = builtins.path {
    name = "shell";
    path = dirOf busybox;
    filter = path: _: baseNameOf path == "busybox";
  };
  run = script: number: inputs: derivation {
    name = "n${toString number}";
    inherit inputs salt system;
    builder = "${shell}/busybox";
    args = [ "sh" "-c" script ];
  };
  nothing = run "echo > $out";
  numbers = builtins.genList (number: number) nodes;
  chain = link: builtins.foldl' (before: number: [ (link number before) ]) [ ] numbers;
  graph = builtins.fromJSON (builtins.readFile edges);
  dag = builtins.genList (number: nothing number (map (builtins.elemAt dag) (builtins.elemAt graph.inputs number))) nodes;
in
{
  independent = map (number: nothing number [ ]) numbers;
  chain = chain nothing;
  speaking = chain (run "echo begun; echo > $out");
  dag = map (builtins.elemAt dag) graph.goals;
}.${shape}
