# Sourced by the builder: build.sh <script of the package>.
export PATH=$cc/bin:$tools/bin HOME=$TMPDIR SOURCE_DATE_EPOCH=1
echo "building $name with $(command -v tcc)"
case $src in
  *.tar.gz)  mkdir source; tar -xzf "$src" -C source ;;
  *.tar.bz2) mkdir source; tar -xjf "$src" -C source ;;
  *)         cp -r "$src" source; chmod -R u+w source ;;
esac
cd source
set -- "$1" *
if [ $# = 2 ] && [ -d "$2" ]; then cd "$2"; fi
. "$1"
