// signals CASE DIRECTORY: signals and cancellations meet a program that writes. It prints what came of it, which the pace
// of the writes must not change; how often something happened is not printed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 64 << 10, BLOCKS = 192, MIB = 1 << 20 };
static char block[BLOCK];

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static int create(const char *name, int flags) {
  int fd = open(name, O_RDWR | O_CREAT | flags, 0644);
  if (fd < 0) fail(name);
  return fd;
}

static void say(const char *what, long result) {
  int error = errno;
  printf("%s: %ld%s%s\n", what, result, result < 0 ? " " : "", result < 0 ? strerror(error) : "");
}

// ---- a file of numbered blocks

static void number_block(long number) {
  for (size_t at = 0; at < BLOCK; at += sizeof number) memcpy(block + at, &number, sizeof number);
}

static void write_blocks(int fd, long from, long to) {
  for (long n = from; n < to; n++) {
    number_block(n);
    ssize_t wrote = write(fd, block, BLOCK);
    if (wrote != BLOCK) say("write", wrote);
  }
}

static void check_blocks(const char *name, int fd, long count) {
  struct stat stat;
  fstat(fd, &stat);
  printf("%s: %s bytes, ", name, stat.st_size == (off_t)count * BLOCK ? "all" : "not the right number of");
  for (long n = 0; n < count; n++) {
    static char read_back[BLOCK];
    number_block(n);
    if (pread(fd, read_back, BLOCK, (off_t)n * BLOCK) != BLOCK || memcmp(block, read_back, BLOCK)) {
      printf("block %ld is wrong\n", n);
      return;
    }
  }
  printf("each right\n");
}

static void every(long microseconds) {
  struct itimerval timer = {{0, microseconds}, {0, microseconds}};
  setitimer(ITIMER_REAL, &timer, NULL);
}

static void handle(int signal, void handler(int), int flags) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
  sigaction(signal, &action, NULL);
}

static volatile sig_atomic_t signals;
static void count(int signal) {
  (void)signal;
  signals++;
}

// ---- handlers that write

static int records, same;
static volatile sig_atomic_t recorded, record_failed;
static void write_record(int signal) {
  (void)signal;
  int error = errno;
  char record[128];
  memset(record, 'r', sizeof record);
  // to a file of the handler's, and to the very file that was being written
  if (write(records, record, sizeof record) != sizeof record) record_failed = 1;
  if (pwrite(same, record, sizeof record, (off_t)BLOCKS * BLOCK) != sizeof record) record_failed = 1;
  recorded++;
  errno = error;
}

static void handlers_that_write(void) {
  int fd = same = create("file", O_TRUNC);
  records = create("records", O_TRUNC | O_APPEND);
  handle(SIGALRM, write_record, SA_RESTART);
  every(1000);
  write_blocks(fd, 0, BLOCKS);
  while (recorded < 20) pause();
  every(0);
  struct stat stat;
  fstat(records, &stat);
  printf("records: %s\n", stat.st_size == recorded * 128l && !record_failed ? "all" : "not all");
  ftruncate(fd, (off_t)BLOCKS * BLOCK);
  check_blocks("file", fd, BLOCKS);
}

static char large[MIB];
static void write_large(int signal) {
  (void)signal;
  int error = errno;
  if (pwrite(records, large, MIB, 0) != MIB) record_failed = 1;
  recorded++;
  errno = error;
}

static void handlers_that_write_much(void) {
  int fd = create("file", O_TRUNC);
  records = create("records", O_TRUNC);
  handle(SIGALRM, write_large, SA_RESTART);
  every(50000);
  write_blocks(fd, 0, BLOCKS);
  while (recorded < 3) pause();
  every(0);
  printf("records: %s\n", record_failed ? "not all" : "all");
  check_blocks("file", fd, BLOCKS);
}

// ---- handlers that do not return

static sigjmp_buf out;
static volatile sig_atomic_t may_jump, jumps;
static void jump(int signal) {
  (void)signal;
  if (!may_jump) return;
  may_jump = 0;
  jumps++;
  siglongjmp(out, 1);
}

static void jumping_out_of_writes(void) {
  static int fd;
  fd = create("file", O_TRUNC);
  handle(SIGALRM, jump, SA_RESTART);
  every(3000);
  sigsetjmp(out, 1);
  while (jumps < 150) {
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at % BLOCK) printf("half a block was written\n");
    if (at == (off_t)BLOCKS * BLOCK) at = lseek(fd, 0, SEEK_SET);
    number_block(at / BLOCK);
    may_jump = 1;
    if (at / BLOCK % 2) pwrite(fd, block, BLOCK, at), lseek(fd, BLOCK, SEEK_CUR);
    else write(fd, block, BLOCK);
    may_jump = 0;
  }
  every(0);
  lseek(fd, 0, SEEK_SET);
  write_blocks(fd, 0, BLOCKS);
  check_blocks("file", fd, BLOCKS);
}

static void jumping_out_of_large_writes(void) {
  static int fd;
  fd = create("file", O_TRUNC);
  handle(SIGALRM, jump, SA_RESTART);
  every(3000);
  sigsetjmp(out, 1);
  while (jumps < 60) {
    may_jump = 1;
    pwrite(fd, large, MIB, (off_t)(jumps % 12) * MIB);
    may_jump = 0;
  }
  every(0);
  ftruncate(fd, 0);
  write_blocks(fd, 0, BLOCKS);
  check_blocks("file", fd, BLOCKS);
}

// ---- interrupted calls

static void interrupted(void) {
  int fds[2];
  for (int flags = 0; flags <= SA_RESTART; flags += SA_RESTART) {
    printf("%s SA_RESTART\n", flags ? "with" : "without");
    handle(SIGALRM, count, flags);
    if (pipe(fds)) fail("pipe");
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    while (write(fds[1], block, BLOCK) > 0) {
    }
    fcntl(fds[1], F_SETFL, 0);
    pid_t child = fork();
    if (child == 0) {
      // by now the other one waits for room, and has been interrupted
      usleep(60000);
      _exit(read(fds[0], block, BLOCK) != BLOCK);
    }
    struct itimerval once = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &once, NULL);
    say("write to a full pipe", write(fds[1], block, 100));
    waitpid(child, NULL, 0);
    close(fds[0]);
    close(fds[1]);

    int fd = create("file", O_TRUNC);
    every(1000);
    write_blocks(fd, 0, BLOCKS);
    say("fsync", fsync(fd));
    every(0);
    check_blocks("file", fd, BLOCKS);
    close(fd);
  }
}

static void storm(void) {
  int fd = create("file", O_TRUNC);
  handle(SIGALRM, count, SA_RESTART);
  every(1000);
  write_blocks(fd, 0, BLOCKS);
  say("fsync", fsync(fd));
  every(0);
  check_blocks("file", fd, BLOCKS);
}

// ---- signals that the calls themselves raise

static void in_child(const char *what, void act(void)) {
  fflush(stdout);
  pid_t child = fork();
  if (child == 0) {
    act();
    fflush(stdout);
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  printf("%s: ended with %x\n", what, status);
}

static void write_to_nobody(void) {
  int fds[2];
  if (pipe(fds)) fail("pipe");
  close(fds[0]);
  say("write to nobody", write(fds[1], block, 100));
}

static void nobody_reads(void) {
  int fd = create("file", O_TRUNC);
  write_blocks(fd, 0, BLOCKS);
  in_child("by default", write_to_nobody);
  signal(SIGPIPE, SIG_IGN);
  in_child("ignored", write_to_nobody);
  signal(SIGPIPE, count);
  write_to_nobody();
  printf("signals: %d\n", (int)signals);
  check_blocks("file", fd, BLOCKS);
}

enum { LIMIT = 4 * MIB + 100 };
static void limited(const char *what, int fd, long result) {
  int error = errno;
  struct stat stat;
  fstat(fd, &stat);
  printf("%s: %ld %s, %ld bytes, at %ld, signals: %d\n", what, result, result < 0 ? strerror(error) : "",
         (long)stat.st_size, (long)lseek(fd, 0, SEEK_CUR), (int)signals);
}

static void limit_size(void) {
  struct rlimit limit = {LIMIT, RLIM_INFINITY};
  setrlimit(RLIMIT_FSIZE, &limit);
}

static void write_over_the_limit(void) {
  int fd = create("limited", O_TRUNC);
  limit_size();
  lseek(fd, LIMIT, SEEK_SET);
  say("write", write(fd, block, BLOCK));
}

static void file_size_limit(void) {
  int fd = create("file", O_TRUNC), source = create("source", O_TRUNC);
  write_blocks(source, 0, BLOCKS);
  signal(SIGXFSZ, count);
  limit_size();
  ssize_t wrote;
  while ((wrote = write(fd, block, BLOCK)) == BLOCK) {
  }
  limited("write", fd, wrote);
  limited("write at the limit", fd, write(fd, block, BLOCK));
  struct iovec parts[] = {{large, MIB}, {large, MIB}, {block, BLOCK}};
  off_t at = 0, from = 0;
#define ANEW ftruncate(fd, 0), at = 3 * MIB, from = 0, lseek(fd, at, SEEK_SET), errno = 0
  ANEW, limited("pwrite", fd, pwrite(fd, large, MIB, 3 * MIB + 4096));
  char *more = calloc(3, MIB);
  ANEW, limited("large pwrite", fd, pwrite(fd, more, 3 * MIB, 2 * MIB));
  ANEW, limited("large write", fd, write(fd, more, 3 * MIB));
  ANEW, limited("writev", fd, writev(fd, parts, 3));
  ANEW, limited("pwritev", fd, pwritev(fd, parts, 3, 3 * MIB));
  ANEW, limited("sendfile", fd, sendfile(fd, source, &from, 3 * MIB));
  ANEW, limited("copy_file_range", fd, copy_file_range(source, &from, fd, &at, 3 * MIB, 0));
  ANEW, limited("syscall", fd, syscall(SYS_pwrite64, fd, more, 3 * MIB, 2 * MIB));
  ANEW, limited("ftruncate", fd, ftruncate(fd, 5 * MIB));
  ANEW, limited("fallocate", fd, fallocate(fd, 0, 4 * MIB, MIB));
  ANEW, limited("posix_fallocate", fd, posix_fallocate(fd, 4 * MIB, MIB));
  FILE *stream = fopen("stream", "w");
  fseek(stream, 3 * MIB, SEEK_SET);
  limited("fwrite", fileno(stream), fwrite(more, 1, 3 * MIB, stream));
  limited("fflush", fileno(stream), fflush(stream));
  limited("fclose", fd, fclose(stream));
  signal(SIGXFSZ, SIG_DFL);
  in_child("by default", write_over_the_limit);
}

// ---- cancellation

static int cancel_fd, cancel_source, cancel_pipe[2];
static int call_to_cancel;
static atomic_int is_cancelled, went_on, cleaned;

static void clean(int *unused) {
  (void)unused;
  cleaned++;
}

static const char *const calls[] = {"write",  "pwrite",    "writev",          "pwritev", "large pwrite", "fsync",
                                    "splice", "sendfile",  "copy_file_range", "close",   "fallocate",    "fwrite",
                                    "syscall", "posix_fallocate", "dup2", "ftruncate", "fcntl",
                                    "read", "pread"};

static void *call_when_cancelled(void *unused) {
  int was;
  __attribute__((cleanup(clean))) int guard = 0;
  (void)guard;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &was);
  FILE *stream = fdopen(dup(cancel_fd), "w");
  struct iovec part = {block, BLOCK};
  off_t at = 0, from = 0;
  while (!is_cancelled) usleep(100);
  pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &was);
  switch (call_to_cancel) {
  case 0: write(cancel_fd, block, BLOCK); break;
  case 1: pwrite(cancel_fd, block, BLOCK, 0); break;
  case 2: writev(cancel_fd, &part, 1); break;
  case 3: pwritev(cancel_fd, &part, 1, 0); break;
  case 4: pwrite(cancel_fd, large, MIB, 0); break;
  case 5: fsync(cancel_fd); break;
  case 6: splice(cancel_pipe[0], NULL, cancel_fd, &at, 4096, 0); break;
  case 7: sendfile(cancel_fd, cancel_source, &from, MIB); break;
  case 8: copy_file_range(cancel_source, &from, cancel_fd, &at, MIB, 0); break;
  case 9: close(dup(cancel_fd)); break;
  case 10: fallocate(cancel_fd, 0, 0, 4096); break;
  case 11: fwrite(block, 1, BLOCK, stream); break;
  case 12: syscall(SYS_write, cancel_fd, block, BLOCK); break;
  case 13: posix_fallocate(cancel_fd, 0, 4096); break;
  case 14: dup2(cancel_fd, 100); break;
  case 15: ftruncate(cancel_fd, 0); break;
  case 16: fcntl(cancel_fd, F_GETFL); break;
  case 17: read(cancel_source, block, BLOCK); break;
  case 18: pread(cancel_source, block, BLOCK, 0); break;
  }
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &was);
  went_on = 1;
  return unused;
}

// Is each of them a cancellation point, and does nothing when the thread was cancelled before?
static void cancelled_at(void) {
  int busy = create("busy", O_TRUNC);
  cancel_source = create("source", O_TRUNC);
  write_blocks(cancel_source, 0, BLOCKS);
  for (call_to_cancel = 0; call_to_cancel < (int)(sizeof calls / sizeof *calls); call_to_cancel++) {
    // in its own right, and when all of the window is owed
    for (int is_busy = 0; is_busy < 2; is_busy++) {
      cancel_fd = create("file", O_TRUNC);
      if (pipe(cancel_pipe) || write(cancel_pipe[1], block, 4096) != 4096) fail("pipe");
      if (is_busy) lseek(busy, 0, SEEK_SET), write_blocks(busy, 0, 24);
      is_cancelled = went_on = cleaned = 0;
      pthread_t thread;
      void *result;
      if (pthread_create(&thread, NULL, call_when_cancelled, NULL)) fail("pthread_create");
      pthread_cancel(thread);
      is_cancelled = 1;
      pthread_join(thread, &result);
      struct stat stat;
      fstat(cancel_fd, &stat);
      printf("%s: %s, %s, cleaned up %d, %ld bytes, next descriptor %d\n", calls[call_to_cancel],
             went_on ? "went on" : "did not return", result == PTHREAD_CANCELED ? "cancelled" : "ended", cleaned,
             (long)stat.st_size, dup(0));
      close_range(cancel_fd, ~0, 0);
    }
  }
  check_blocks("source", cancel_source, BLOCKS);
}

static void *write_until_cancelled(void *unused) {
  __attribute__((cleanup(clean))) int guard = 0;
  (void)guard;
  for (long n = 0;; n = (n + 1) % BLOCKS) {
    if (n == 0) lseek(cancel_fd, 0, SEEK_SET);
    if (call_to_cancel) pwrite(cancel_fd, large, MIB, (off_t)n * BLOCK);
    else if (write(cancel_fd, block, BLOCK) != BLOCK) printf("a short write\n");
  }
  return unused;
}

static void cancelled_at_any_time(void) {
  enum { ROUNDS = 60 };
  int cancelled = 0, whole = 1;
  cancel_fd = create("file", O_TRUNC);
  for (int round = 0; round < ROUNDS; round++) {
    call_to_cancel = round % 2;
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, write_until_cancelled, NULL)) fail("pthread_create");
    usleep(round * 137 % 12000);
    pthread_cancel(thread);
    pthread_join(thread, &result);
    cancelled += result == PTHREAD_CANCELED;
    struct stat stat;
    fstat(cancel_fd, &stat);
    whole &= stat.st_size % BLOCK == 0;
  }
  printf("%d cancelled, %d cleaned up, %s\n", cancelled, cleaned, whole ? "whole blocks" : "half a block");
  lseek(cancel_fd, 0, SEEK_SET);
  ftruncate(cancel_fd, 0);
  write_blocks(cancel_fd, 0, BLOCKS);
  check_blocks("file", cancel_fd, BLOCKS);
}

// ---- a handler on a stack of its own, of 8 KiB (SIGSTKSZ), whose first call is the program's first, too

static int handler_fd;

static void write_first(int signal) {
  (void)signal;
  write_blocks(handler_fd, 0, 1);
}

static ssize_t first_read;
static void read_first(int signal) {
  (void)signal;
  first_read = read(handler_fd, block, BLOCK);
}

static void raise_on_a_small_stack(void handler(int)) {
  enum { STACK = 8 << 10, PAGE = 4 << 10 };
  char *stack = mmap(NULL, PAGE + STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stack == MAP_FAILED || mprotect(stack, PAGE, PROT_NONE)) fail("mmap");
  stack_t small = {.ss_sp = stack + PAGE, .ss_size = STACK};
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
  if (sigaltstack(&small, NULL) || sigaction(SIGUSR1, &action, NULL)) fail("sigaltstack");
  raise(SIGUSR1);
}

static void on_a_small_stack(void) {
  handler_fd = create("file", 0);
  raise_on_a_small_stack(write_first);
  write_blocks(handler_fd, 1, BLOCKS);
  check_blocks("file", handler_fd, BLOCKS);
}

static void reading_on_a_small_stack(void) {
  // what a child knows of the rules its parent does not
  pid_t child = fork();
  if (child == 0) {
    write_blocks(create("file", 0), 0, BLOCKS);
    _exit(0);
  }
  waitpid(child, NULL, 0);
  handler_fd = create("file", 0);
  raise_on_a_small_stack(read_first);
  say("read", first_read);
  check_blocks("file", handler_fd, BLOCKS);
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    {"handlers_that_write", handlers_that_write},
    {"handlers_that_write_much", handlers_that_write_much},
    {"jumping_out_of_writes", jumping_out_of_writes},
    {"jumping_out_of_large_writes", jumping_out_of_large_writes},
    {"interrupted", interrupted},
    {"storm", storm},
    {"nobody_reads", nobody_reads},
    {"file_size_limit", file_size_limit},
    {"on_a_small_stack", on_a_small_stack},
    {"reading_on_a_small_stack", reading_on_a_small_stack},
    {"cancelled_at", cancelled_at},
    {"cancelled_at_any_time", cancelled_at_any_time},
};

int main(int argc, char **argv) {
  if (argc != 3 || chdir(argv[2])) return 2;
  for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
    if (strcmp(cases[n].name, argv[1]) == 0) {
      cases[n].run();
      return 0;
    }
  }
  return 2;
}
