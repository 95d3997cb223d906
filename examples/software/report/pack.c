/* Compresses stdin, checks that it comes back, and says how small it got. */
#include <stdio.h>
#include <string.h>
#include <zlib.h>

static unsigned char in[1 << 20], packed[1 << 20], out[1 << 20];

int main(void) {
  uLong n = fread(in, 1, sizeof in, stdin);
  uLongf packed_len = sizeof packed, out_len = sizeof out;
  if (compress(packed, &packed_len, in, n) != Z_OK) return 1;
  if (uncompress(out, &out_len, packed, packed_len) != Z_OK) return 2;
  if (out_len != n || memcmp(in, out, n) != 0) return 3;
  printf("%lu bytes pack into %lu with zlib %s\n", n, packed_len, zlibVersion());
  return 0;
}
