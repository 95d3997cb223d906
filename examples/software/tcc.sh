cat > config.h <<C
#define TCC_VERSION "0.9.27"
#define CONFIG_TCC_STATIC 1
#define CONFIG_TCC_MUSL 1
#define CONFIG_TCC_CRTPREFIX "$musl/lib"
#define CONFIG_TCC_LIBPATHS "$musl/lib:$out/lib/tcc"
#define CONFIG_TCC_SYSINCLUDEPATHS "$out/lib/tcc/include:$musl/include"
#define CONFIG_TCC_ELFINTERP "/none"
#define CONFIG_TCCDIR "$out/lib/tcc"
C
mkdir -p $out/bin $out/lib/tcc/include
link="-static -nostdlib $musl/lib/crt1.o $musl/lib/crti.o"
tcc -DTCC_TARGET_X86_64 -DONE_SOURCE=1 -I. $link -o stage1 tcc.c $musl/lib/libc.a $(find $($tools/bin/sed -n 's/.*-B\([^ ]*\).*/\1/p' $bootstrap/bin/tcc) -name libtcc1.a) $musl/lib/crtn.o
cp include/*.h tcclib.h $out/lib/tcc/include/
cd lib
for f in libtcc1.c va_list.c; do ../stage1 -I.. -c $f -o ${f%.c}.o; done
for f in alloca86_64.S alloca86_64-bt.S; do [ ! -f $f ] || ../stage1 -I.. -c $f -o ${f%.S}.o; done
../stage1 -ar rcs $out/lib/tcc/libtcc1.a *.o
cd ..
# Again with itself: what is installed owes nothing to Debian's.
./stage1 -static -DTCC_TARGET_X86_64 -DONE_SOURCE=1 -I. -o $out/bin/tcc tcc.c
$out/bin/tcc -v
