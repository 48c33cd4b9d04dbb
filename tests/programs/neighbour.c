// neighbour BYTES: takes so much anonymous memory, a MiB at a time, and prints how long that took in all and how long the
// worst MiB took, in microseconds.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static long now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000L + now.tv_nsec / 1000;
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  size_t bytes = strtoul(argv[1], NULL, 10), mib = 1 << 20;
  char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  long start = now_us(), worst = 0;
  for (size_t at = 0; at < bytes; at += mib) {
    long before = now_us();
    memset(memory + at, 1, bytes - at < mib ? bytes - at : mib);
    long took = now_us() - before;
    if (took > worst) worst = took;
  }
  printf("%ld %ld\n", now_us() - start, worst);
  return 0;
}
