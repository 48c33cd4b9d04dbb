// streams FILE BYTES: writes about so many bytes by every kind of stdio's functions that writes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  FILE *file = fopen(argv[1], "w"), *wide = fopen(argv[1], "a");
  if (!file || !wide || fwide(wide, 1) <= 0) {
    perror("fopen");
    return 1;
  }
  static char block[1000];
  memset(block, 'x', sizeof block);
  block[sizeof block - 1] = 0;
  for (long left = atol(argv[2]), n = 0; left > 0; left -= 5 * sizeof block, n++) {
    if (fwrite(block, 1, sizeof block, file) != sizeof block || fputs(block, file) < 0) return 1;
    if (fprintf(file, "%s%ld\n", block, n) < 0) return 1;
    for (int byte = 0; byte < 2000; byte++) {
      if (putc('y', file) == EOF) return 1;
    }
    // glibc writes wide characters a few at a time
    if (n % 100 == 0 && (fwprintf(wide, L"%s\n", block) < 0 || fputwc(L'z', wide) == WEOF)) return 1;
    if (n % 1000 == 0 && fflush(file)) return 1;
  }
  if (fclose(file) || fclose(wide)) {
    perror("fclose");
    return 1;
  }
}
