// each_way FILE: writes a mebibyte to it in each way that has code of its own for each kind of machine: by libc's
// functions, by syscall(), by stdio, and from processes made by fork and clone. vfork's child only ends.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)

static char data[MIB];
static char stack[64 << 10] __attribute__((aligned(16)));
static int fd;

static void check(int holds, const char *what) {
  if (!holds) {
    perror(what);
    exit(1);
  }
}

static int child(void *unused) {
  (void)unused;
  _exit(write(fd, data, MIB) == MIB ? 7 : 8);
}

static void ends_with_7(pid_t pid, const char *what) {
  int status;
  check(pid > 0 && waitpid(pid, &status, 0) == pid, what);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 7, what);
}

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0644);
  check(fd >= 0, "open");
  check(write(fd, data, MIB) == MIB, "write");
  check(pwrite(fd, data, MIB, MIB) == MIB, "pwrite");
  check(writev(fd, &(struct iovec){data, MIB}, 1) == MIB, "writev");
  check(syscall(SYS_write, fd, data, MIB) == MIB, "syscall");
  check(syscall(SYS_getpid) == getpid(), "syscall that is none of ours");

  FILE *stream = fdopen(dup(fd), "a");
  check(stream && fwrite(data, 1, MIB, stream) == MIB && fclose(stream) == 0, "stdio");

  pid_t pid = fork();
  if (pid == 0) child(NULL);
  ends_with_7(pid, "fork");
  ends_with_7(clone(child, stack + sizeof stack, SIGCHLD, NULL), "clone");
  pid = vfork();
  if (pid == 0) _exit(7);
  ends_with_7(pid, "vfork");
  return 0;
}
