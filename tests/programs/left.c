// left vectors|cancel|fork DIR: calls that a ledger could lose count of, then what an ordinary program writes. Prints the
// longest write call of that last part, in milliseconds.
//   vectors  small writes, then vectors of 4 MiB
//   cancel   40 threads that are cancelled while they write 4 MiB blocks
//   fork     60 children that each write 7 MiB through a descriptor of their parent's
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MIB (1 << 20)
static char block[4 * MIB];

static int file(const char *dir, const char *name, int number) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s-%d", dir, name, number);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) {
    perror(path);
    exit(1);
  }
  return fd;
}

static void put(int fd, size_t bytes) {
  for (size_t done = 0; done < bytes; done += 65536) {
    if (write(fd, block, 65536) != 65536) {
      perror("write");
      exit(1);
    }
  }
}

static void *writes(void *fd) {
  for (;;) {
    if (write(*(int *)fd, block, sizeof block) < 0) return NULL;
  }
}

static double now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  memset(block, 'x', sizeof block);
  int fd = file(argv[2], argv[1], 0);
  if (strcmp(argv[1], "vectors") == 0) {
    put(fd, 8 * 65536);
    struct iovec vector = {block, sizeof block};
    for (int n = 0; n < 30; n++) {
      if (writev(fd, &vector, 1) != (ssize_t)sizeof block) return 1;
    }
  } else if (strcmp(argv[1], "cancel") == 0) {
    for (int n = 0; n < 40; n++) {
      pthread_t thread;
      if (pthread_create(&thread, NULL, writes, &fd)) return 1;
      usleep(20000);
      pthread_cancel(thread);
      pthread_join(thread, NULL);
    }
  } else {
    put(fd, 2 * MIB);
    for (int n = 0; n < 60; n++) {
      if (fork() == 0) {
        put(fd, 2 * MIB);
        _exit(0);
      }
      if (n % 4 == 3) {
        while (wait(NULL) > 0) {
        }
      }
    }
  }
  double longest = 0;
  int last = file(argv[2], argv[1], 1);
  for (int n = 0; n < 512; n++) {
    double start = now_ms();
    put(last, 65536);
    double took = now_ms() - start;
    if (took > longest) longest = took;
  }
  printf("%.0f\n", longest);
  return 0;
}
