// hot_path null|pwrite|start COUNT FILE: prints what one call costs, in nanoseconds.
//   null    a write of one byte
//   pwrite  a write of 16 bytes to the same place of a file
//   start   starting and reaping FILE, a program
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

// A process that waits for its turn on the CPU costs nothing meanwhile; one that waits for its child does.
static double now_ns(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1e9 + now.tv_nsec;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  const char *what = argv[1], *file = argv[3];
  long count = strtol(argv[2], NULL, 10);
  char bytes[16] = "some bytes";
  int fd = -1;
  if (strcmp(what, "start") != 0 && (fd = open(file, O_WRONLY | O_CREAT, 0644)) < 0) fail(file);

  clockid_t clock = what[0] == 's' ? CLOCK_MONOTONIC : CLOCK_PROCESS_CPUTIME_ID;
  double start = now_ns(clock);
  for (long n = 0; n < count; n++) {
    if (what[0] == 'n') {
      if (write(fd, bytes, 1) != 1) fail("write");
    } else if (what[0] == 'p') {
      if (pwrite(fd, bytes, sizeof bytes, 0) != sizeof bytes) fail("pwrite");
    } else {
      pid_t child;
      int status;
      char *arguments[] = {(char *)file, NULL};
      if (posix_spawn(&child, file, NULL, NULL, arguments, environ)) fail("posix_spawn");
      if (waitpid(child, &status, 0) < 0 || status) fail(file);
    }
  }
  printf("%.2f\n", (now_ns(clock) - start) / count);
  return 0;
}
