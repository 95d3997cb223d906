# Sourced by get-nix and examples/*/fetch. A private apt over the mirror that this machine's own apt uses, for
# any suite of it: the host's apt (sources, lists, cache, installed packages) is neither changed nor consulted
# otherwise.
#
#   private_apt_init <dir> <suite> <"deb"|"deb-src deb">   returns apt's status
#   private_apt <apt program> <args...>

private_apt_init() {
  local dir=$1 suite=$2 types=$3 host_suite keyring signed= t f
  PRIVATE_APT=$dir
  host_suite=$(. /etc/os-release; echo "${VERSION_CODENAME:-}")
  local uri
  uri=$(apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' -v s="$host_suite" '$2 == s && $3 == "main" { print $1; exit }')
  if [ -z "$uri" ]; then
    echo "private-apt: this machine's apt sources have no '$host_suite main' to take the mirror's address from" >&2
    return 1
  fi
  keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  [ -e "$keyring" ] && signed="[signed-by=$keyring] "
  rm -rf "$dir"
  mkdir -p "$dir/parts" "$dir/state/lists/partial" "$dir/cache/archives/partial" || return 1
  : > "$dir/status"; : > "$dir/sources.list"
  for t in $types; do echo "$t ${signed}${uri} ${suite:-$host_suite} main" >> "$dir/sources.list"; done
  # the host's settings (proxy, transport) hold, its hooks do not
  for f in /etc/apt/apt.conf.d/*; do
    [ -f "$f" ] || continue
    grep -qiE 'Invoke|Post-|Pre-' "$f" || ln -s "$f" "$dir/parts/"
  done
  private_apt apt-get update > "$dir/log" 2>&1 || { cat "$dir/log" >&2; return 1; }
}

private_apt() {
  local prog=$1 d=$PRIVATE_APT; shift
  "$prog" -q -o Dir::Etc::parts="$d/parts" -o Dir::Etc::sourcelist="$d/sources.list" \
    -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferences=/dev/null \
    -o Dir::Etc::preferencesparts=/dev/null \
    -o Dir::State="$d/state" -o Dir::State::status="$d/status" -o Dir::Cache="$d/cache" \
    -o Dir::Cache::pkgcache=pkgcache.bin -o Dir::Cache::srcpkgcache=srcpkgcache.bin \
    -o APT::Install-Recommends=0 -o APT::Sandbox::User=root -o Acquire::Languages=none \
    -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=0 -o Acquire::Retries=3 "$@"
}
