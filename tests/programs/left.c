// left vectors|cancel|fork|moved|many DIR: calls that a ledger could lose count of, then what an ordinary program writes. Prints the
// longest write call of that last part, in milliseconds.
//   vectors  small writes, then vectors of 4 MiB
//   cancel   40 threads that are cancelled while they write 4 MiB blocks
//   fork     60 children that each write 7 MiB through a descriptor of their parent's
//   moved    a child moves the offset on after each write of its parent's
//   many     1,100 files are open and written to, and but for the last one closed
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
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

static void moved(int fd) {
  int to_child[2], back[2];
  char byte;
  if (pipe(to_child) || pipe(back)) exit(1);
  if (fork() == 0) {
    close(to_child[1]);
    while (read(to_child[0], &byte, 1) == 1) {
      lseek(fd, MIB, SEEK_CUR);
      if (write(back[1], &byte, 1) != 1) break;
    }
    _exit(0);
  }
  for (int n = 0; n < 60 * 16; n++) {
    put(fd, 65536);
    if (write(to_child[1], "x", 1) != 1 || read(back[0], &byte, 1) != 1) exit(1);
  }
  close(to_child[1]);
  wait(NULL);
}

static void many(const char *dir) {
  struct rlimit limit = {2000, 2000};
  setrlimit(RLIMIT_NOFILE, &limit);
  int first = -1, last = -1;
  for (int n = 0; n < 1100; n++) {
    last = file(dir, "one-of-many", n);
    if (first < 0) first = last;
    if (write(last, "x", 1) != 1) exit(1);
  }
  for (int fd = first; fd < last; fd++) close(fd);
  put(last, 60 * MIB);
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
  } else if (strcmp(argv[1], "moved") == 0) {
    moved(fd);
  } else if (strcmp(argv[1], "many") == 0) {
    many(argv[2]);
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
