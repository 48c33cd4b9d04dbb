// threads_one_file SOURCE OUTPUT: sixteen threads copy a file, each every sixteenth block of 256 KiB.
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { THREADS = 16, BLOCK = 256 << 10 };

static int source, output;

static void *copy_every_sixteenth_block(void *first) {
  char *block = malloc(BLOCK);
  for (off_t at = (off_t)(long)first * BLOCK;; at += (off_t)THREADS * BLOCK) {
    ssize_t bytes = pread(source, block, BLOCK, at);
    if (bytes == 0) break;
    if (bytes < 0 || pwrite(output, block, bytes, at) != bytes) {
      perror("threads_one_file");
      exit(1);
    }
  }
  free(block);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  source = open(argv[1], O_RDONLY);
  output = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (source < 0 || output < 0) {
    perror("threads_one_file");
    return 1;
  }
  pthread_t threads[THREADS];
  for (long n = 0; n < THREADS; n++) {
    if (pthread_create(&threads[n], NULL, copy_every_sixteenth_block, (void *)n)) return 1;
  }
  for (int n = 0; n < THREADS; n++) pthread_join(threads[n], NULL);
  return close(output) ? 1 : 0;
}
