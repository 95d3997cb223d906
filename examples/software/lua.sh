cd src
mkdir -p $out/bin $out/lib $out/include
rm -f onelua.c ltests.c
for f in *.c; do
  case $f in lua.c|luac.c) continue ;; esac
  echo "  cc $f"
  tcc -DLUA_USE_POSIX -c $f
done
tcc -ar rcs $out/lib/liblua.a *.o
tcc -static -DLUA_USE_POSIX -o $out/bin/lua lua.c $out/lib/liblua.a -lm
cp lua.h lauxlib.h lualib.h luaconf.h $out/include/
$out/bin/lua -v
