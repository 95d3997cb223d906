# A builder that writes a derivation which claims the output path of another one.
{ busybox }:

let
  seed = builtins.path { path = dirOf busybox; name = "seed"; filter = path: type: baseNameOf path == "busybox"; };
  shell = "${seed}/busybox";
  run = name: script: attrs: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = shell;
    args = [ "sh" "-euc" script ];
  } // attrs);
  out = builtins.unsafeDiscardStringContext victim.outPath;
  written = text: run "victim.drv" "${shell} printf '%s' \"$text\" > $out" {
    inherit text;
    __contentAddressed = true;
    outputHashMode = "text";
    outputHashAlgo = "sha256";
  };
  victim = run "victim" "echo honest > $out" { };
in
{
  inherit victim;
  forged = written ''Derive([("out","${out}","","")],[],["${seed}"],"x86_64-linux","${shell}",["sh","-euc","echo forged > $out"],[("out","${out}")])'';
  garbage = written "no derivation";
}
