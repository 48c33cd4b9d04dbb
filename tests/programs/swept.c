// swept CASE FILE: stores 64 MiB to files that it has mapped, under circumstances that vary, and says how many MiB of that
// are not on the disk four seconds later.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MIB = 1 << 20, HALF = 32 * MIB, MANY = 100 };

static const char *file;
static char path[4096];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static const char *named(const char *end) {
  snprintf(path, sizeof path, "%s%s", file, end);
  return path;
}

static int create(const char *end, size_t bytes) {
  int fd = open(named(end), O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (fd < 0 || ftruncate(fd, bytes)) fail(path);
  return fd;
}

static char *map(int fd, size_t bytes) {
  char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) fail("mmap");
  return at;
}

static int unwritten_mib(int fd) {
  uint64_t range[2] = {0, 0}, stat[5];
  if (syscall(451, fd, range, stat, 0)) fail("cachestat");  // pages: cached, dirty, under writeback
  return (stat[1] + stat[2]) * 4096 / MIB;
}

static int descriptors[2];
static char *mappings[2];

static void make(void) {
  for (int n = 0; n < 2; n++) {
    descriptors[n] = create(n ? ".1" : ".0", HALF);
    mappings[n] = map(descriptors[n], HALF);
  }
}

static void store(void) {
  for (int n = 0; n < 2; n++) memset(mappings[n], 'x', HALF);
  sleep(4);
  printf("%d\n", unwritten_mib(descriptors[0]) + unwritten_mib(descriptors[1]));
}

static void usual(void) {
  make();
  store();
}

// the thread that sweeps leaves before that, and would not hear of it
static void gives_up_rights(void) {
  make();
  memset(mappings[0], 'x', MIB);
  usleep(300000);
  if (setresuid(65534, 65534, 65534)) fail("setresuid");
  store();
}

static void unshares(void) {
  make();
  memset(mappings[0], 'x', MIB);
  usleep(300000);
  if (unshare(CLONE_NEWUSER | CLONE_NEWNS)) fail("unshare");
  store();
}

static void *stores_later(void *_) {
  (void)_;
  usleep(300000);
  make();
  // one is known by its mapping alone, the other by its descriptor alone
  close(descriptors[0]);
  unlink(named(".1"));
  for (int n = 0; n < 2; n++) memset(mappings[n], 'x', HALF);
  sleep(4);
  int fd = open(named(".0"), O_RDONLY);
  printf("%d\n", unwritten_mib(fd) + unwritten_mib(descriptors[1]));
  exit(0);
}

static void main_ends(void) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, stores_later, NULL)) fail("pthread_create");
  pthread_exit(NULL);
}

// the youngest mappings are listed first
static void many_mappings(void) {
  make();
  for (int n = 0; n < MANY; n++) {
    char end[16];
    snprintf(end, sizeof end, ".many-%d", n);
    int fd = create(end, MIB);
    map(fd, MIB);
    close(fd);
  }
  store();
}

// there is a limit from when somebody has made FILE.go
static void limited_later(void) {
  make();
  close(create(".ready", 0));
  while (access(named(".go"), F_OK)) usleep(10000);
  // whoever writes to a file for the first time looks whether there is a limit
  for (int n = 0; n < 100; n++, usleep(10000)) {
    int fd = create(".small", 0);
    if (write(fd, "x", 1) != 1) fail("write");
    close(fd);
  }
  store();
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*run)(void);
  } cases[] = {{"usual", usual},         {"gives_up_rights", gives_up_rights},
               {"unshares", unshares},   {"main_ends", main_ends},
               {"many_mappings", many_mappings}, {"limited_later", limited_later}};
  if (argc != 3) return 2;
  file = argv[2];
  for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
    if (strcmp(cases[n].name, argv[1]) == 0) {
      cases[n].run();
      return 0;
    }
  }
  return 2;
}
