# Reads every eighth of many files. Builds of another `salt` have the same name and read the same.
{ busybox, grain, salt ? "", system ? "x86_64-linux" }:

let
  seed = builtins.path { path = dirOf busybox; name = "seed"; filter = path: type: baseNameOf path == "busybox"; };
  shell = "${seed}/busybox";
  heap = builtins.path { path = grain; name = "heap"; };
in
derivation {
  name = "sifted";
  inherit system salt;
  builder = shell;
  args = [ "sh" "-euc" "for n in $(${shell} seq 0 8 319); do ${shell} md5sum ${heap}/part$((n / 40))/$n; done | ${shell} cut -c -32 > $out; echo \"$salt\" >> $out" ];
}
