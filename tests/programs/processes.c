// processes CASE DIRECTORY: a program that writes makes processes, ends them, or lives where something is missing. It
// prints what came of it, descriptor numbers included.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <pty.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 64 << 10, BLOCKS = 192, HALF = BLOCKS / 2 };
static char block[BLOCK];
static const char *program;
extern char **environ;

static void fail(const char *what) {
  perror(what);
  _exit(1);
}

static int create(const char *name) {
  int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) fail(name);
  return fd;
}

static void write_blocks(int fd, int count) {
  for (int n = 0; n < count; n++) {
    memset(block, n + 1, BLOCK);
    if (write(fd, block, BLOCK) != BLOCK) fail("write");
  }
}

// One after another: what was written by several is as long as it should be, and each block is of one kind.
static void check(const char *name, int count) {
  static char read_back[BLOCK];
  int fd = open(name, O_RDONLY);
  if (fd < 0) fail(name);
  struct stat stat;
  fstat(fd, &stat);
  int right = stat.st_size == (off_t)count * BLOCK;
  for (int n = 0; n < count && right; n++) {
    if (read(fd, read_back, BLOCK) != BLOCK) right = 0;
    memset(block, read_back[0], BLOCK);
    if (read_back[0] == 0 || memcmp(block, read_back, BLOCK)) right = 0;
  }
  printf("%s: %s\n", name, right ? "right" : "wrong");
  close(fd);
}

static void next_number(void) {
  int fd = dup(0);
  printf("next descriptor: %d\n", fd);
  close(fd);
}

static void wait_for(pid_t child) {
  int status;
  if (child < 0 || waitpid(child, &status, __WALL) != child) fail("waitpid");
  printf("child: %x\n", status);
}

static void writer_arguments(char **arguments, char *fd_text, int fd) {
  sprintf(fd_text, "%d", fd);
  char *all[] = {(char *)program, "write", fd_text, NULL};
  memcpy(arguments, all, sizeof all);
}

// ---- children

static void forked(void) {
  int shared = create("shared"), own = create("own");
  pid_t children[3];
  fflush(stdout);
  for (int n = 0; n < 3; n++) {
    children[n] = fork();
    if (children[n] == 0) {
      char name[16];
      sprintf(name, "child-%d", n);
      write_blocks(create(name), HALF);
      write_blocks(shared, 16); // the offset is everybody's
      // in each of the ways in which a process ends
      if (n == 0) exit(0);
      if (n == 1) _exit(0);
      raise(SIGKILL);
    }
  }
  write_blocks(own, HALF);
  for (int n = 0; n < 3; n++) wait_for(children[n]);
  check("own", HALF);
  for (int n = 0; n < 3; n++) check((const char *[]){"child-0", "child-1", "child-2"}[n], HALF);
  struct stat stat;
  fstat(shared, &stat);
  printf("shared: %ld bytes\n", (long)stat.st_size);
  next_number();
}

static void vforked(void) {
  int fd = create("file");
  write_blocks(fd, 16);
  for (volatile int n = 0; n < 4; n++) {
    pid_t child = vfork();
    if (child == 0) {
      // in the parent's memory, and a descriptor table of its own
      write_blocks(fd, 16);
      dup2(0, fd);
      close(0);
      _exit(n);
    }
    wait_for(child);
  }
  write_blocks(fd, BLOCKS);
  check("file", BLOCKS + 80);
  next_number();
}

static void spawned(void) {
  char text[16], *arguments[4];
  int fd = create("file");
  writer_arguments(arguments, text, fd);
  pid_t child = vfork();
  if (child == 0) {
    execv(program, arguments);
    _exit(9);
  }
  wait_for(child);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, fd, 20);
  posix_spawn_file_actions_addclose(&actions, fd);
  writer_arguments(arguments, text, 20);
  if (posix_spawn(&child, program, &actions, NULL, arguments, environ)) fail("posix_spawn");
  wait_for(child);
  write_blocks(fd, BLOCKS);
  check("file", 3 * BLOCKS);
  next_number();
}

static void without_environment(void) {
  char text[16], *arguments[4], *nothing[] = {NULL};
  int fd = create("file");
  write_blocks(fd, BLOCKS);
  writer_arguments(arguments, text, fd);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    write_blocks(fd, 16);
    execve(program, arguments, nothing);
    _exit(9);
  }
  wait_for(child);
  write_blocks(fd, BLOCKS);
  check("file", 3 * BLOCKS + 16);
  next_number();
}

static int cloned(void *fd) {
  write_blocks(*(int *)fd, HALF);
  // a file of its own, at the number of the parent's
  close(*(int *)fd);
  return create("childs") == *(int *)fd ? 0 : 1;
}

static void cloned_with(int flags) {
  static char stack[256 << 10] __attribute__((aligned(16)));
  int fd = create("file"), twin = dup(fd);
  write_blocks(fd, HALF);
  fflush(stdout);
  wait_for(clone(cloned, stack + sizeof stack, flags | SIGCHLD, &fd));
  // where the table is shared the number stands for the child's file now
  write_blocks(fd, 16);
  write_blocks(twin, BLOCKS);
  if (flags & CLONE_FILES) {
    check("childs", 16);
    check("file", HALF + HALF + BLOCKS);
  } else {
    check("file", HALF + HALF + 16 + BLOCKS);
  }
  next_number();
}
static void cloned_alone(void) { cloned_with(0); }
static void cloned_with_files(void) { cloned_with(CLONE_FILES); }
static void cloned_with_memory(void) { cloned_with(CLONE_VM); }
static void cloned_with_all(void) { cloned_with(CLONE_VM | CLONE_FILES | CLONE_FS | CLONE_SIGHAND); }

// Who shares the descriptor table gets the numbers that it expects.
static long *strange_numbers;
static int opens_again(void *_) {
  (void)_;
  int expected = open("/dev/null", O_RDONLY);
  close(expected);
  while (!strange_numbers[1]) {
    int fd = open("/dev/null", O_RDONLY);
    strange_numbers[0] += fd != expected;
    close(fd);
  }
  _exit(0);
}

static void shares_numbers(void) {
  static char stack[256 << 10] __attribute__((aligned(16)));
  strange_numbers = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int fd = create("file");
  pid_t child = clone(opens_again, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL);
  write_blocks(fd, BLOCKS);
  strange_numbers[1] = 1;
  wait_for(child);
  check("file", BLOCKS);
  printf("opens that got another number: %ld\n", strange_numbers[0]);
}

// libc puts a file in the place of a pipe by calls of its own.
static void stream_reopened(void) {
  int fds[2];
  if (pipe(fds)) fail("pipe");
  FILE *stream = fdopen(fds[1], "w");
  fputs("to the pipe", stream);
  stream = freopen("file", "w", stream);
  if (!stream) fail("freopen");
  write_blocks(fileno(stream), BLOCKS);
  fclose(stream);
  printf("pipe: %zd\n", read(fds[0], block, BLOCK));
  check("file", BLOCKS);
  next_number();
}

static void made_by_libc(void) {
  int fd = create("file"), terminal;
  fflush(stdout);
  for (int way = 0; way < 3; way++) {
    write_blocks(fd, 16);
    pid_t child = way == 0 ? _Fork() : way == 1 ? forkpty(&terminal, NULL, NULL, NULL) : fork();
    if (child == 0) {
      // the one who detaches himself writes last, and tells by leaving a file
      if (way == 2 && daemon(1, 0)) fail("daemon");
      write_blocks(fd, 64);
      if (way == 2) create("done");
      _exit(0);
    }
    wait_for(child);
  }
  for (int n = 0; n < 10000 && access("done", F_OK); n++) usleep(1000);
  check("file", 3 * 80);
}

// By exit(2), which ends one thread, while the library has one of its own.
static void last_thread_exits(void) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    int fd = create("mapped");
    if (ftruncate(fd, 4 << 20)) fail("ftruncate");
    char *at = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(at, 1, 4 << 20);
    write_blocks(create("file"), BLOCKS);
    syscall(SYS_exit, 7);
  }
  wait_for(child);
  check("file", BLOCKS);
}

static void daemon_that_closes(void) {
  int fds[2], fd = create("before");
  if (pipe(fds)) fail("pipe");
  write_blocks(fd, 32);
  fflush(stdout);
  for (int way = 0; way < 3; way++) {
    pid_t child = fork();
    if (child == 0) {
      setsid();
      dup2(fds[1], 3);
      if (way == 0) {
        for (int n = sysconf(_SC_OPEN_MAX) < 70000 ? sysconf(_SC_OPEN_MAX) : 70000; n >= 0; n--) {
          if (n != 3) close(n);
        }
      } else if (way == 1) {
        close_range(4, ~0, 0);
        for (int n = 0; n < 3; n++) close(n);
      } else {
        closefrom(4);
        for (int n = 0; n < 3; n++) close(n);
      }
      char name[16], numbers[4];
      sprintf(name, "daemon-%d", way);
      for (int n = 0; n < 3; n++) numbers[n] = '0' + open("/dev/null", O_RDWR);
      int own = create(name);
      numbers[3] = '0' + own;
      write_blocks(own, BLOCKS);
      write(3, numbers, 4);
      _exit(0);
    }
    wait_for(child);
    char numbers[5] = "";
    read(fds[0], numbers, 4);
    printf("descriptors of the daemon: %s\n", numbers);
  }
  for (int way = 0; way < 3; way++) check((const char *[]){"daemon-0", "daemon-1", "daemon-2"}[way], BLOCKS);
}

// ---- where something is missing

static void limit(int what, rlim_t to) {
  struct rlimit limit = {to, to};
  if (setrlimit(what, &limit)) fail("setrlimit");
}

static void *write_in_thread(void *fd) {
  write_blocks(*(int *)fd, HALF);
  return fd;
}

static void eight_descriptors(void) {
  int fd = create("file"), number = 0, twin = create("thread's");
  limit(RLIMIT_NOFILE, 8);
  for (int next; (next = dup(0)) >= 0;) number = next;
  printf("last descriptor: %d, then %s\n", number, strerror(errno));
  write_blocks(fd, BLOCKS);
  pthread_t thread;
  if (pthread_create(&thread, NULL, write_in_thread, &twin)) fail("pthread_create");
  for (int n = 0; n < 2000; n++) {
    close(7);
    if (dup(0) != 7) printf("somebody took a descriptor\n");
    usleep(50);
  }
  pthread_join(thread, NULL);
  close(7);
  check("file", BLOCKS);
  check("thread's", HALF);
}

// Or as many as this process may have.
static void a_million_descriptors(void) {
  struct rlimit most;
  getrlimit(RLIMIT_NOFILE, &most);
  int all = most.rlim_max < 1 << 20 ? (int)most.rlim_max : 1 << 20;
  limit(RLIMIT_NOFILE, all);
  int fd = create("file"), last = dup2(fd, all - 1);
  printf("last descriptor: %d\n", last);
  write_blocks(last, HALF);
  for (int n = 0; n < all - 20; n++) dup(fd);
  next_number();
  write_blocks(fd, HALF);
  for (int n = fd + 1; n < all; n++) close(n);
  next_number();
  write_blocks(fd, HALF);
  closefrom(fd + 1);
  check("file", 3 * HALF);
}

static void little_address_space(void) {
  char text[16], *arguments[4];
  int fd = create("file");
  writer_arguments(arguments, text, fd);
  limit(RLIMIT_AS, 256 << 20);
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    execv(program, arguments);
    _exit(9);
  }
  wait_for(child);
  pthread_t thread;
  if (pthread_create(&thread, NULL, write_in_thread, &fd)) fail("pthread_create");
  pthread_join(thread, NULL);
  write_blocks(fd, BLOCKS);
  check("file", 2 * BLOCKS + HALF);
}

static void other_root(void) {
  int fd = create("file");
  write_blocks(fd, 16);
  if (chroot(".")) fail("chroot");
  write_blocks(fd, BLOCKS);
  int inside = create("/inside");
  write_blocks(inside, BLOCKS);
  close(inside);
  check("/file", BLOCKS + 16);
  check("/inside", BLOCKS);
  next_number();
}

static void without_proc(void) {
  if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || umount2("/proc", MNT_DETACH)) {
    fail("unmounting /proc");
  }
  int fd = create("file");
  write_blocks(fd, BLOCKS);
  close(fd);
  check("file", BLOCKS);
  next_number();
}

// Both want a process with one thread, and one that shares its root directory with nobody.
static void own_namespaces(void) {
  int here = open("/proc/self/ns/mnt", O_RDONLY);
  for (int n = 0; n < 8; n++) {
    int fd = create("file");
    write_blocks(fd, BLOCKS);
    close(fd);
  }
  check("file", BLOCKS);
  if (setns(here, CLONE_NEWNS)) fail("setns");
  for (int n = 0; n < 8; n++) {
    int fd = create("file");
    write_blocks(fd, BLOCKS);
    close(fd);
  }
  if (unshare(CLONE_NEWUSER)) fail("unshare");
  close(here);
  next_number();
}

// The least of the user ids that a thread of this process has.
static unsigned least_user(void) {
  unsigned least = UINT_MAX;
  DIR *tasks = opendir("/proc/self/task");
  for (struct dirent *task; tasks && (task = readdir(tasks));) {
    char path[300], line[256];
    snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
    FILE *status = fopen(path, "r");
    for (unsigned user; status && fgets(line, sizeof line, status);) {
      if (sscanf(line, "Uid: %u", &user) == 1 && user < least) least = user;
    }
    if (status) fclose(status);
  }
  if (tasks) closedir(tasks);
  return least;
}

static void gives_up_rights(void) {
  for (int n = 0; n < 8; n++) {
    int fd = create("file");
    write_blocks(fd, BLOCKS);
    close(fd);
  }
  int fd = create("file");
  if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)) fail("setresuid");
  write_blocks(fd, BLOCKS);
  close(fd);
  check("file", BLOCKS);
  printf("least user: %u\n", least_user());
  next_number();
}

// What the kernel cannot read is its affair.
static void bad_submissions(void) {
  unsigned long context = 0;
  if (syscall(SYS_io_setup, 4, &context)) fail("io_setup");
  void *nowhere[] = {(void *)-1, NULL};
  long submitted = syscall(SYS_io_submit, context, 1L, (void *)-1);
  printf("array: %ld, %s\n", submitted, strerror(errno));
  submitted = syscall(SYS_io_submit, context, 1L, nowhere);
  printf("block: %ld, %s\n", submitted, strerror(errno));
  int fd = create("file");
  write_blocks(fd, BLOCKS);
  close(fd);
  check("file", BLOCKS);
  next_number();
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    {"forked", forked},
    {"vforked", vforked},
    {"spawned", spawned},
    {"without_environment", without_environment},
    {"cloned_alone", cloned_alone},
    {"cloned_with_files", cloned_with_files},
    {"cloned_with_memory", cloned_with_memory},
    {"cloned_with_all", cloned_with_all},
    {"shares_numbers", shares_numbers},
    {"stream_reopened", stream_reopened},
    {"made_by_libc", made_by_libc},
    {"last_thread_exits", last_thread_exits},
    {"daemon_that_closes", daemon_that_closes},
    {"eight_descriptors", eight_descriptors},
    {"a_million_descriptors", a_million_descriptors},
    {"little_address_space", little_address_space},
    {"other_root", other_root},
    {"without_proc", without_proc},
    {"own_namespaces", own_namespaces},
    {"gives_up_rights", gives_up_rights},
    {"bad_submissions", bad_submissions},
};

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  program = realpath(argv[0], NULL);
  if (strcmp(argv[1], "write") == 0) {
    write_blocks(atoi(argv[2]), BLOCKS);
    return 0;
  }
  if (chdir(argv[2])) return 2;
  for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
    if (strcmp(cases[n].name, argv[1]) == 0) {
      cases[n].run();
      return 0;
    }
  }
  return 2;
}
