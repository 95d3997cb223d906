mkdir -p $out/lib $out/include
for f in adler32 compress crc32 deflate gzclose gzlib gzread gzwrite infback inffast inflate inftrees trees uncompr zutil; do
  echo "  cc $f.c"
  tcc -DHAVE_UNISTD_H -DHAVE_STDARG_H -c $f.c
done
tcc -ar rcs $out/lib/libz.a *.o
cp zlib.h zconf.h $out/include/
