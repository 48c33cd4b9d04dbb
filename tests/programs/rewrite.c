// rewrite FILE: writes the same 8 MiB forty times, in blocks of 64 KiB; a block for each byte of its standard input.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 64 << 10, BLOCKS = 128, TIMES = 40 };

int main(int argc, char **argv) {
  static char block[BLOCK];
  if (argc != 2) return 2;
  int fd = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  for (int time = 0; time < TIMES; time++) {
    memset(block, time, BLOCK);
    for (int n = 0; n < BLOCKS; n++) {
      char byte;
      if (read(STDIN_FILENO, &byte, 1) != 1) {
        fprintf(stderr, "rewrite: not told to write block %d\n", n);
        return 1;
      }
      if (pwrite(fd, block, BLOCK, (off_t)n * BLOCK) != BLOCK) {
        perror("rewrite");
        return 1;
      }
    }
  }
  return close(fd) ? 1 : 0;
}
