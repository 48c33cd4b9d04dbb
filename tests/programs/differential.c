// differential SEED SCALE COUNT DIRECTORY LOG [KEPT]: carries out COUNT random operations in DIRECTORY, and writes to
// LOG, a line each, what they gave: result, errno, and of the descriptor used its offset, size and flags; at every reset
// and at the end the sizes and sums of all files. Sizes and offsets are SCALE times the usual ones. An operation depends
// on SEED, its own number and the state it finds, so any of them can be left out: KEPT is a file with a '1' or '0' for
// each. Two runs on the same kernel and filesystem give the same log; what the kernel does not promise (how far a splice
// to a pipe gets, where holes are) is not asked for.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#include <wchar.h>

enum { PAGE = 4096, KIB = 1 << 10, MIB = 1 << 20, GIB = 1 << 30, DATA = 4 * MIB, PIPE = 64 * KIB };
enum { SLOTS = 8, STREAMS = 2, LOG = 3, FIRST_FREE = 4, PIPE_AT = 600, SOCKET_AT = 610 };
static const char *const names[] = {"a", "b", "c", "d", "e", "f"};
enum { NAMES = sizeof names / sizeof *names };

static char *data;          // DATA random bytes, and a page that faults
static int slots[SLOTS];    // descriptors: open, closed, or by now another's
static FILE *streams[STREAMS];
static const char *program;
static volatile sig_atomic_t file_too_large;

static void fail(const char *what) {
  perror(what);
  abort();
}

// ---- numbers

static uint64_t state;

static uint64_t mix(uint64_t word) {
  word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9;
  word = (word ^ (word >> 27)) * 0x94d049bb133111eb;
  return word ^ (word >> 31);
}
static uint64_t draw(void) { return mix(state += 0x9e3779b97f4a7c15); }
static uint64_t below(uint64_t bound) { return draw() % bound; }
static int one_in(uint64_t count) { return below(count) == 0; }

static int scale;

static size_t size(void) {
  uint64_t kind = below(10000);
  if (kind < 50) return 0;
  if (kind < 6500) return 1 + below(4 * KIB * scale);
  if (kind < 9500) return 4 * KIB + below(12 * KIB * scale);
  if (kind < 9920) return PAGE * (1 + below(16 * scale));
  if (kind < 9992) return below(512 * KIB);
  return below(3 * MIB) + MIB;
}

static off_t offset(void) {
  static const off_t strange[] = {-1, -4096, INT64_MIN, INT64_MAX, INT64_MAX - 100, (off_t)1 << 62, (off_t)1 << 44};
  uint64_t kind = below(1000);
  if (kind < 4) return strange[below(sizeof strange / sizeof *strange)];
  if (kind < 14) return below(64 * MIB);
  if (kind < 500) return PAGE * below(256 * scale);
  return below(MIB * scale);
}

// ---- the log

static char said[64 * KIB];
static size_t said_bytes;
static long result;
static int result_errno;

static void flush_log(void) {
  for (size_t done = 0; done < said_bytes;) {
    ssize_t wrote = write(LOG, said + done, said_bytes - done);
    if (wrote < 0) fail("the log");
    done += wrote;
  }
  said_bytes = 0;
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
  va_list values;
  va_start(values, format);
  said_bytes += vsnprintf(said + said_bytes, sizeof said - said_bytes, format, values);
  va_end(values);
  if (said_bytes > sizeof said - 4 * KIB) flush_log();
}

#define CALL(call) (errno = 0, result = (long)(call), result_errno = errno)

static void say_result(void) { say(" = %ld %d", result, result_errno); }

static void say_state(int fd) {
  struct stat stat;
  if (fstat(fd, &stat)) return;
  say(" at %ld", lseek(fd, 0, SEEK_CUR));
  if (!S_ISDIR(stat.st_mode)) say(" of %ld", stat.st_size);
  say(" flags %x,%x", fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
}

static uint64_t sum(const char *bytes, size_t count, uint64_t salt) {
  uint64_t all = salt ^ count;
  for (size_t at = 0; at + 8 <= count; at += 8) {
    uint64_t word;
    memcpy(&word, bytes + at, 8);
    all = (all ^ word) * 0x9e3779b97f4a7c15;
    all ^= all >> 29;
  }
  for (size_t at = count & ~7ul; at < count; at++) all = (all ^ (unsigned char)bytes[at]) * 0x100000001b3;
  return all;
}

// Holes and zeros are the same to it.
static void say_contents(const char *name) {
  static char block[64 * KIB];
  static const char zeros[PAGE];
  int fd = open(name, O_RDONLY);
  if (fd < 0) return;
  struct stat stat;
  fstat(fd, &stat);
  uint64_t all = 0;
  for (off_t at = 0; (at = lseek(fd, at, SEEK_DATA)) >= 0;) {
    at &= -PAGE;
    ssize_t got = pread(fd, block, sizeof block, at);
    if (got <= 0) break;
    for (ssize_t in = 0; in < got; in += PAGE) {
      size_t bytes = got - in < PAGE ? got - in : PAGE;
      if (memcmp(block + in, zeros, bytes)) all += sum(block + in, bytes, mix(at + in));
    }
    at += got;
  }
  say("  %s: %ld bytes, links %ld, sum %016lx\n", name, stat.st_size, (long)stat.st_nlink, all);
  close(fd);
}

// ---- what operations use

// Most are open, some are closed, and some never were anything.
static int any_fd(void) {
  static const int strange[] = {-1, 999, 70000, INT_MAX, 1 << 20};
  if (one_in(60)) return strange[below(sizeof strange / sizeof *strange)];
  int fd = -1;
  for (int tries = 0; tries < 4 && fcntl(fd, F_GETFD) < 0; tries++) fd = slots[below(SLOTS)];
  return fd;
}
static const char *any_name(void) { return names[below(NAMES)]; }
static char *any_data(void) { return data + (one_in(3) ? PAGE * below(64) : below(PAGE)); }

// Bytes to write: all there, or, seldom, none. Where only the first ones are, XFS of Linux 6.18 shows random bytes of
// memory behind what it wrote into a hole.
static char *bytes_for(size_t *count) {
  if (one_in(200)) return data + DATA;
  char *from = any_data();
  if (*count > (size_t)(data + DATA - from)) *count = data + DATA - from;
  return from;
}

static void close_unseen(int fd) {
#ifdef __x86_64__
  long unused;
  __asm__ volatile("syscall" : "=a"(unused) : "a"((long)SYS_close), "D"((long)fd) : "rcx", "r11", "memory");
#else
  register long number __asm__("x8") = SYS_close, first __asm__("x0") = fd;
  __asm__ volatile("svc 0" : "+r"(first) : "r"(number) : "memory");
#endif
}

// A pair that is out of the others' way, made anew where something closed it.
static void pair_at(int at, int make(int *)) {
  if (fcntl(at, F_GETFD) >= 0 && fcntl(at + 1, F_GETFD) >= 0) return;
  int fds[2];
  if (make(fds)) fail("a pair");
  for (int n = 0; n < 2; n++) {
    if (dup2(fds[n], at + n) < 0) fail("dup2");
    close(fds[n]);
  }
}
static int make_pipe(int *fds) { return pipe(fds); }
static int make_sockets(int *fds) { return socketpair(AF_UNIX, SOCK_STREAM, 0, fds); }

static void keep(int fd) {
  if (fd >= 0) slots[below(SLOTS)] = fd;
}

// ---- the operations

static void op_open(void) {
  static const int ways[] = {O_RDWR, O_RDWR, O_RDWR, O_WRONLY, O_RDONLY};
  int flags = ways[below(5)] | O_CREAT;
  if (one_in(4)) flags |= O_TRUNC;
  if (one_in(5)) flags |= O_APPEND;
  if (one_in(20)) flags |= O_SYNC;
  if (one_in(20)) flags |= O_DSYNC;
  if (one_in(20)) flags |= O_EXCL;
  if (one_in(10)) flags |= O_CLOEXEC;
  const char *name = any_name();
  uint64_t how = below(16);
  if (how == 0) name = "/dev/null";
  if (how == 1) name = "/dev/full";
  if (how == 2) CALL(open(".", O_TMPFILE | O_RDWR, 0644));
  else if (how == 3) CALL(memfd_create("memory", 0));
  else if (how == 4) CALL(open(".", one_in(2) ? O_PATH : O_RDONLY | O_DIRECTORY));
  else if (how == 5) CALL(creat(name, 0644));
  else if (how == 6) CALL(openat(AT_FDCWD, name, flags, 0644));
  else if (how == 7) CALL(syscall(SYS_openat, AT_FDCWD, name, flags, 0644));
  else CALL(open(name, flags, 0644));
  say("open way=%d %s flags=%x", (int)how, name, flags);
  say_result();
  say_state(result);
  keep(result);
}

static void op_write(void) {
  int fd = any_fd();
  size_t count = size();
  char *from = bytes_for(&count);
  int by_number = one_in(4);
  if (by_number) CALL(syscall(SYS_write, fd, from, count));
  else CALL(write(fd, from, count));
  say("write%s fd=%d n=%zu", by_number ? " by number" : "", fd, count);
  say_result();
  say_state(fd);
}

static void op_pwrite(void) {
  int fd = any_fd();
  size_t count = size();
  off_t at = offset();
  char *from = bytes_for(&count);
  if (one_in(500)) count = one_in(2) ? SIZE_MAX : SSIZE_MAX;
  int by_number = one_in(4);
  if (by_number) CALL(syscall(SYS_pwrite64, fd, from, count, at));
  else CALL(pwrite(fd, from, count, at));
  say("pwrite%s fd=%d n=%zu at=%ld", by_number ? " by number" : "", fd, count, at);
  say_result();
  say_state(fd);
}

static void op_vectors(void) {
  static const int all_flags[] = {0, 0, 0, RWF_APPEND, RWF_DSYNC, RWF_HIPRI, 0x80 /* DONTCACHE */, 0x10000};
  struct iovec parts[70];
  int count = one_in(20) ? 70 : 1 + below(4);
  size_t all = 0;
  for (int n = 0; n < count; n++) {
    size_t bytes = count == 70 ? below(2 * KIB) : size();
    parts[n].iov_base = bytes_for(&bytes);
    if (n > 0 && parts[n].iov_base == data + DATA) parts[n].iov_base = data;
    parts[n].iov_len = bytes;
    all += bytes;
  }
  if (one_in(100)) parts[0].iov_len = SIZE_MAX;
  struct iovec *from = parts;
  if (one_in(100)) count = one_in(2) ? -1 : 2000;
  if (count == 2000 || one_in(100)) from = (struct iovec *)(data + DATA);
  int fd = any_fd(), by_number = one_in(4), how = below(4), flags = all_flags[below(8)];
  off_t at = offset();
  if (how == 3) how = 2;
  if (one_in(4)) at = -1;
  if (how == 0) CALL(by_number ? syscall(SYS_writev, fd, from, count) : writev(fd, from, count));
  if (how == 1) CALL(by_number ? syscall(SYS_pwritev, fd, from, count, at, 0) : pwritev(fd, from, count, at));
  if (how == 2) {
    CALL(by_number ? syscall(SYS_pwritev2, fd, from, count, at, 0, flags) : pwritev2(fd, from, count, at, flags));
  }
  say("vectors way=%d%s fd=%d parts=%d n=%zu at=%ld flags=%x%s", how, by_number ? " by number" : "", fd, count, all, at,
      flags, from == parts ? "" : " faulting");
  say_result();
  say_state(fd);
}

// A length for a copy: seldom more than there is to copy, but never without an end.
static size_t copy_size(int from, int to, off_t at) {
  static const size_t huge[] = {SIZE_MAX, SSIZE_MAX, INT_MAX, (size_t)1 << 40};
  struct stat in, out;
  if (!one_in(30) || fstat(from, &in) || fstat(to, &out) || !S_ISREG(in.st_mode)) return size();
  int is_self = in.st_dev == out.st_dev && in.st_ino == out.st_ino;
  if (is_self || at < 0 || in.st_size - at > 4 * MIB) return size();
  return huge[below(4)];
}

static void op_sendfile(void) {
  int from = any_fd(), to = any_fd(), by_number = one_in(4);
  off_t at = offset(), *where = one_in(2) ? &at : NULL;
  if (one_in(200)) where = (off_t *)(data + DATA);
  size_t count = copy_size(from, to, where == &at ? at : lseek(from, 0, SEEK_CUR));
  if (by_number) CALL(syscall(SYS_sendfile, to, from, where, count));
  else CALL(sendfile(to, from, where, count));
  say("sendfile%s from=%d to=%d n=%zu%s", by_number ? " by number" : "", from, to, count, where ? " at" : "");
  say_result();
  say(" %ld", at);
  say_state(from);
  say_state(to);
}

static void op_copy(void) {
  int from = any_fd(), to = any_fd(), by_number = one_in(4), flags = one_in(50);
  off_t from_at = offset(), to_at = offset();
  off_t *from_where = one_in(2) ? &from_at : NULL, *to_where = one_in(2) ? &to_at : NULL;
  if (one_in(200)) to_where = (off_t *)(data + DATA);
  size_t count = copy_size(from, to, from_where ? from_at : lseek(from, 0, SEEK_CUR));
  if (by_number) CALL(syscall(SYS_copy_file_range, from, from_where, to, to_where, count, flags));
  else CALL(copy_file_range(from, from_where, to, to_where, count, flags));
  say("copy_file_range%s from=%d to=%d n=%zu%s%s", by_number ? " by number" : "", from, to, count,
      from_where ? " from_at" : "", to_where ? " to_at" : "");
  say_result();
  say(" %ld %ld", from_at, to_at);
  say_state(from);
  say_state(to);
}

// What goes into the pipe comes out of it before the operation ends.
static void op_splice(void) {
  static char rest[PIPE];
  pair_at(PIPE_AT, make_pipe);
  size_t put = below(PIPE + 1), count = one_in(4) ? below(2 * PIPE) : put;
  if (put && write(PIPE_AT + 1, any_data(), put) != (ssize_t)put) fail("a pipe");
  int to = any_fd(), by_number = one_in(4);
  off_t at = offset(), *where = one_in(2) ? &at : NULL;
  if (put == 0) count = 0; // it would wait for ever
  if (by_number) CALL(syscall(SYS_splice, PIPE_AT, NULL, to, where, count, 0));
  else CALL(splice(PIPE_AT, NULL, to, where, count, 0));
  long moved = result > 0 ? result : 0;
  say("splice%s to=%d put=%zu n=%zu%s", by_number ? " by number" : "", to, put, count, where ? " at" : "");
  say_result();
  say(" %ld", at);
  say_state(to);
  if (moved < (long)put) {
    ssize_t got = read(PIPE_AT, rest, sizeof rest);
    say(" rest %zd %016lx", got, sum(rest, got, 0));
  }
}

static void op_through_pipe_or_socket(void) {
  static char back[PIPE];
  int is_pipe = one_in(2), at = is_pipe ? PIPE_AT : SOCKET_AT;
  pair_at(at, is_pipe ? make_pipe : make_sockets);
  size_t count = below(PIPE);
  char *from = any_data();
  struct iovec parts[2] = {{from, count / 2}, {from + count / 2, count - count / 2}};
  int how = below(4), file = any_fd();
  off_t start = PAGE * below(64);
  // one page at most: how many a socket takes at once is not promised
  if (how == 3) CALL(sendfile(at + 1, file, &start, below(PAGE)));
  else if (how == 2) CALL(syscall(SYS_write, at + 1, from, count));
  else CALL(how ? writev(at + 1, parts, 2) : write(at + 1, from, count));
  say("%s way=%d n=%zu", is_pipe ? "pipe" : "socket", how, count);
  say_result();
  for (long left = result; left > 0;) {
    ssize_t got = read(at, back, left < PIPE ? left : PIPE);
    if (got <= 0) fail("reading back");
    left -= got;
  }
}

static void op_allocate(void) {
  static const int modes[] = {
      0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE,
      FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, 0x4000};
  int fd = any_fd(), how = below(4), mode = modes[below(9)];
  off_t at = offset(), count = below(MIB);
  if (one_in(2)) at &= -PAGE, count &= -PAGE;
  if (at > 64 * MIB) at = 0; // real space
  struct stat stat;
  if (fstat(fd, &stat) == 0 && stat.st_size > GIB) mode &= ~(FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE);
  if (one_in(50)) count = -count;
  if (how == 0) CALL(posix_fallocate(fd, at, count));
  else if (how == 1) CALL(syscall(SYS_fallocate, fd, mode, at, count));
  else CALL(fallocate(fd, mode, at, count));
  say("allocate way=%d fd=%d mode=%x at=%ld n=%ld", how, fd, mode, at, count);
  say_result();
  say_state(fd);
}

static void op_truncate(void) {
  int fd = any_fd(), how = below(3);
  const char *name = any_name();
  off_t to = offset();
  if (how == 0) CALL(truncate(name, to));
  else if (how == 1) CALL(syscall(SYS_ftruncate, fd, to));
  else CALL(ftruncate(fd, to));
  say("truncate way=%d %s fd=%d to=%ld", how, name, fd, to);
  say_result();
  say_state(fd);
}

static void op_seek(void) {
  static const int from[] = {SEEK_SET, SEEK_SET, SEEK_CUR, SEEK_END, 77};
  int fd = any_fd(), whence = from[below(5)], by_number = one_in(4);
  off_t to = offset();
  if (whence == SEEK_END) to = -(off_t)below(64 * KIB);
  if (by_number) CALL(syscall(SYS_lseek, fd, to, whence));
  else CALL(lseek(fd, to, whence));
  say("lseek%s fd=%d to=%ld whence=%d", by_number ? " by number" : "", fd, to, whence);
  say_result();
}

static void op_dup(void) {
  int fd = any_fd(), how = below(9), to = one_in(3) ? any_fd() : FIRST_FREE + (int)below(40);
  if (one_in(20)) to = below(3);
  if (one_in(40)) to = 1000 + below(8);
  if (to == LOG) to++;
  if (how == 0) CALL(dup(fd));
  if (how == 1) CALL(dup2(fd, to));
  if (how == 2) CALL(dup3(fd, to, one_in(2) ? O_CLOEXEC : 0));
  if (how == 3) CALL(fcntl(fd, F_DUPFD, to));
  if (how == 4) CALL(fcntl(fd, F_DUPFD_CLOEXEC, to));
  if (how == 5) CALL(syscall(SYS_dup, fd));
  if (how == 6) CALL(syscall(SYS_dup3, fd, to, 0));
  if (how == 7) CALL(syscall(SYS_fcntl, fd, F_DUPFD, to));
  if (how == 8) CALL(dup2(fd, fd));
  say("dup way=%d fd=%d to=%d", how, fd, to);
  say_result();
  say_state(result);
  if (how != 8) keep(result);
}

static void op_close(void) {
  int fd = any_fd(), how = below(20);
  int first = FIRST_FREE + below(40), last = one_in(3) ? INT_MAX : first + (int)below(6);
  if (fd == LOG) return;
  result = result_errno = 0;
  if (how == 0) CALL(close_range(first, last, 0));
  else if (how == 1) CALL(close_range(first, last, CLOSE_RANGE_CLOEXEC));
  else if (how == 2) CALL(syscall(SYS_close_range, first, last, 0));
  else if (how == 3) closefrom(first);
  else if (how < 8) CALL(syscall(SYS_close, fd));
  else if (how < 10) close_unseen(fd);
  else CALL(close(fd));
  say("close way=%d fd=%d first=%d last=%d", how, fd, first, last);
  say_result();
}

static void op_flags(void) {
  int fd = any_fd(), set = 0, by_number = one_in(4);
  if (one_in(2)) set |= O_APPEND;
  if (one_in(4)) set |= O_NONBLOCK;
  if (by_number) CALL(syscall(SYS_fcntl, fd, F_SETFL, set));
  else CALL(fcntl(fd, F_SETFL, set));
  say("flags%s fd=%d set=%x", by_number ? " by number" : "", fd, set);
  say_result();
  say_state(fd);
}

static void op_names(void) {
  const char *from = any_name(), *to = any_name();
  int how = below(4);
  if (how == 0) CALL(rename(from, to));
  if (how == 1) CALL(unlink(from));
  if (how == 2) CALL(link(from, to));
  if (how == 3) CALL(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 2 /* RENAME_EXCHANGE */));
  say("names way=%d %s %s", how, from, to);
  say_result();
}

static void op_sync(void) {
  int fd = any_fd(), how = below(5);
  if (how == 0) CALL(fsync(fd));
  if (how == 1) CALL(fdatasync(fd));
  if (how == 2) CALL(sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER));
  if (how == 3) CALL(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED));
  if (how == 4) CALL(posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED));
  say("sync way=%d fd=%d", how, fd);
  say_result();
}

static void op_read(void) {
  static char bytes[256 * KIB] __attribute__((aligned(PAGE)));
  int fd = any_fd();
  size_t count = size() % (sizeof bytes + 1);
  if (one_in(2)) count &= -PAGE;
  off_t at = offset();
  int is_plain = one_in(2);
  if (is_plain) CALL(read(fd, bytes, count));
  else CALL(pread(fd, bytes, count, at));
  say("read fd=%d n=%zu", fd, count);
  if (!is_plain) say(" at=%ld", at);
  say_result();
  if (result > 0) say(" sum %016lx", sum(bytes, result, 0));
}

// In blocks: of a direct write that ends within one, ext4 has written what happens to lie in other extents than its end.
static void op_direct(void) {
  static char back[600 * PAGE] __attribute__((aligned(PAGE)));
  const char *name = any_name();
  int fd = open(name, O_RDWR | O_CREAT | O_DIRECT | (one_in(4) ? O_APPEND : 0), 0644), flags = fcntl(fd, F_GETFL);
  say("direct %s fd=%d", name, fd);
  for (int left = 1 + below(4); left > 0; left--) {
    char *from = data + (one_in(10) ? 7 : PAGE * below(64));
    size_t count = PAGE * below(one_in(50) ? 600 : 16);
    off_t at = PAGE * below(256);
    int how = below(5), other = how == 4 ? dup(fd) : fd;
    if (how == 0) fcntl(fd, F_SETFL, flags ^ O_DIRECT);
    if (how == 1) CALL(write(other, from, count));
    else if (how == 2) CALL(pread(other, back, count, at));
    else CALL(pwrite(other, from, count, at));
    say(" way=%d n=%zu at=%ld", how, count, at);
    say_result();
    if (how == 2 && result > 0) say(" sum %016lx", sum(back, result, 0));
    say_state(fd);
    if (how == 4) close(other);
    fcntl(fd, F_SETFL, flags);
  }
  close(fd);
}

static void op_map(void) {
  int fd = any_fd();
  struct stat stat;
  say("map fd=%d", fd);
  if (fstat(fd, &stat) || !S_ISREG(stat.st_mode) || stat.st_size < PAGE || stat.st_size > 64 * MIB) return;
  size_t pages = stat.st_size / PAGE, first = below(pages), count = 1 + below(pages - first < 16 ? pages - first : 16);
  char *at = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, first * PAGE);
  result = at == MAP_FAILED ? -1 : 0;
  result_errno = result ? errno : 0;
  say_result();
  if (result) return;
  memcpy(at + below(PAGE), any_data(), (count - 1) * PAGE + 1);
  if (one_in(4)) CALL(msync(at, count * PAGE, one_in(2) ? MS_SYNC : MS_ASYNC));
  munmap(at, count * PAGE);
}

static void op_stream_open(void) {
  static const char *const modes[] = {"w", "a", "r+", "w+", "a+", "r", "we"};
  int n = below(STREAMS), how = below(4), fd = any_fd();
  const char *mode = modes[below(7)], *name = any_name();
  if (how == 0 && streams[n]) {
    streams[n] = freopen(name, mode, streams[n]);
  } else {
    if (streams[n]) fclose(streams[n]);
    errno = 0;
    streams[n] = how == 1 ? fdopen(fd, mode) : fopen(name, mode);
  }
  result_errno = errno;
  result = streams[n] ? fileno(streams[n]) : -1;
  say("stream %d open way=%d %s %s fd=%d", n, how, name, mode, fd);
  say_result();
  if (!streams[n]) return;
  if (one_in(2)) keep(result);
  static const int buffers[] = {_IOFBF, _IOLBF, _IONBF};
  int kind = below(8); // glibc's wide streams with a buffer of the program's own write beyond it
  if (kind < 3) setvbuf(streams[n], NULL, buffers[kind], one_in(2) ? 64 * KIB : 512);
  if (kind == 7) fwide(streams[n], 1);
}

static void op_stream_write(void) {
  int n = below(STREAMS), how = below(5);
  FILE *stream = streams[n];
  if (!stream) return;
  size_t count = size();
  char *from = any_data();
  if (fwide(stream, 0) > 0) how = 5;
  if (how < 3) CALL(fwrite(from, 1, count, stream));
  if (how == 3) CALL(fprintf(stream, "%*d\n", (int)below(20000), 17));
  if (how == 4) CALL(fputs("a line, and so on\n", stream));
  if (how == 5) CALL(fwprintf(stream, L"%*d\n", (int)below(20000), 17));
  say("stream %d write way=%d n=%zu", n, how, count);
  say_result();
  say(" error %d", ferror(stream));
  say_state(fileno(stream));
}

static void op_stream_other(void) {
  int n = below(STREAMS), how = below(6);
  FILE *stream = streams[n];
  if (!stream) return;
  if (how == 0) CALL(fflush(stream));
  if (how == 1) CALL(fseek(stream, below(MIB), SEEK_SET));
  if (how == 2) CALL(ftell(stream));
  if (how == 3) CALL(fseek(stream, 0, SEEK_END));
  if (how == 4) CALL(fflush(NULL));
  if (how == 5) {
    CALL(fclose(stream));
    streams[n] = NULL;
  }
  say("stream %d other way=%d", n, how);
  say_result();
}

static void one_that_writes(void);

// Across RLIMIT_FSIZE a call is short, or fails with a signal.
static void op_limited(void) {
  struct rlimit before, limit;
  getrlimit(RLIMIT_FSIZE, &before);
  limit = (struct rlimit){below(2 * MIB), before.rlim_max};
  flush_log(); // it has a limit too now
  setrlimit(RLIMIT_FSIZE, &limit);
  one_that_writes();
  setrlimit(RLIMIT_FSIZE, &before);
  say(" limit=%lu signals=%d", (unsigned long)limit.rlim_cur, (int)file_too_large);
}

static void wait_for(pid_t child) {
  int status;
  if (child < 0 || waitpid(child, &status, __WALL) != child) fail("a child");
  say("\n  the child ended: %x", status);
}

static void one_of_any(void);

static void several(void) {
  for (int left = 1 + below(6); left > 0; left--) {
    say("\n  ");
    one_of_any();
  }
}

static void op_fork(void) {
  flush_log();
  pid_t child = fork();
  if (child == 0) {
    several();
    flush_log();
    if (one_in(3)) exit(0);
    if (one_in(2)) raise(SIGKILL);
    _exit(0);
  }
  say("fork");
  wait_for(child);
}

// A child in whose table the parent finds what it did, unseen by the parent's library.
static void op_clone_with_files(void) {
  flush_log();
  int fd = any_fd(), other = any_fd();
  pid_t child = syscall(SYS_clone, CLONE_FILES | SIGCHLD, 0, 0, 0, 0);
  if (child == 0) {
    if (fd > LOG) close(fd);
    CALL(open(any_name(), O_RDWR | O_CREAT | (one_in(3) ? O_APPEND : 0), 0644));
    say("  opened");
    say_result();
    CALL(write(other, data, below(64 * KIB)));
    say(" wrote");
    say_result();
    flush_log();
    _exit(0);
  }
  say("clone with files fd=%d other=%d", fd, other);
  wait_for(child);
}

static volatile long vfork_gave[3];

__attribute__((noinline)) static void vfork_child(int fd, int other) {
  size_t count = below(64 * KIB);
  pid_t child = vfork();
  if (child == 0) {
    vfork_gave[0] = write(other, data, count);
    vfork_gave[1] = dup2(other, fd > LOG ? fd : FIRST_FREE);
    vfork_gave[2] = write(vfork_gave[1], data, count);
    if (fd > LOG) close(fd);
    close(other == LOG ? -1 : other);
    _exit(0);
  }
  say("vfork fd=%d other=%d n=%zu = %ld %ld %ld", fd, other, count, vfork_gave[0], vfork_gave[1], vfork_gave[2]);
  wait_for(child);
}

static void op_vfork(void) {
  int fd = any_fd(), other = any_fd();
  vfork_child(fd, other);
  say_state(other);
}

// Another program that inherits the descriptor, with and without an environment.
static void op_spawn(void) {
  int fd = any_fd();
  char number[16], bytes[16];
  snprintf(number, sizeof number, "%d", fd);
  snprintf(bytes, sizeof bytes, "%d", (int)below(512 * KIB));
  char *arguments[] = {(char *)program, "spawned", number, bytes, NULL}, *nothing[] = {NULL};
  char **environment = one_in(2) ? environ : nothing;
  pid_t child;
  if (one_in(2)) {
    child = vfork();
    if (child == 0) {
      execve(program, arguments, environment);
      _exit(9);
    }
  } else if (posix_spawn(&child, program, NULL, NULL, arguments, environment)) {
    fail("posix_spawn");
  }
  say("spawn fd=%d n=%s", fd, bytes);
  wait_for(child);
  say_state(fd);
}

enum { THREADS = 3, PER_THREAD = 6, STRIDE = 128 * KIB };
struct share {
  int fd, number;
  size_t bytes;
  ssize_t wrote[PER_THREAD];
};

static void *thread(void *argument) {
  struct share *share = argument;
  for (int n = 0; n < PER_THREAD; n++) {
    off_t at = (off_t)(n * THREADS + share->number) * STRIDE;
    share->wrote[n] = pwrite(share->fd, data + share->number * 100, share->bytes, at);
  }
  return NULL;
}

// Threads write their own parts of one file; meanwhile this one opens, duplicates and closes: nobody else takes a number.
static void op_threads(void) {
  pthread_t threads[THREADS];
  struct share shares[THREADS];
  int numbers[24], fd = open(any_name(), O_RDWR | O_CREAT, 0644);
  for (int n = 0; n < THREADS; n++) {
    shares[n] = (struct share){.fd = fd, .number = n, .bytes = size() % STRIDE};
    if (pthread_create(&threads[n], NULL, thread, &shares[n])) fail("pthread_create");
  }
  for (int n = 0; n < 24; n++) {
    numbers[n] = n % 2 ? dup(LOG) : open(any_name(), O_RDWR | O_CREAT, 0644);
    if (n % 3) close(numbers[n - (n % 3 == 2)]);
  }
  for (int n = 0; n < THREADS; n++) pthread_join(threads[n], NULL);
  say("threads fd=%d", fd);
  for (int n = 0; n < THREADS * PER_THREAD; n++) say(" %zd", shares[n % THREADS].wrote[n / THREADS]);
  say(" numbers");
  for (int n = 0; n < 24; n++) {
    say(" %d", numbers[n]);
    close(numbers[n]);
  }
  say_state(fd);
  close(fd);
}

static void start_anew(void) {
  for (int n = 0; n < STREAMS; n++) {
    if (streams[n]) CALL(fclose(streams[n]));
    streams[n] = NULL;
  }
  close_range(FIRST_FREE, INT_MAX, 0);
  int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < LOG; fd++) {
    if (null != fd) dup2(null, fd);
  }
  if (null > LOG) close(null);
  for (int n = 0; n < SLOTS; n++) slots[n] = -1;
}

static void op_reset(void) {
  start_anew();
  say("reset\n");
  for (int n = 0; n < NAMES; n++) say_contents(names[n]);
  for (int n = 0; n < NAMES; n++) unlink(names[n]);
  for (int n = 0; n < SLOTS / 2; n++) slots[n] = open(names[n], O_RDWR | O_CREAT | (n ? 0 : O_APPEND), 0644);
}

static const struct {
  int weight;
  int is_writing, is_simple;
  void (*run)(void);
} operations[] = {
    {1400, 0, 1, op_open},
    {1500, 1, 1, op_write},
    {1500, 1, 1, op_pwrite},
    {800, 1, 1, op_vectors},
    {300, 1, 1, op_sendfile},
    {300, 1, 1, op_copy},
    {200, 1, 1, op_splice},
    {200, 0, 1, op_through_pipe_or_socket},
    {300, 1, 1, op_allocate},
    {300, 1, 1, op_truncate},
    {500, 0, 1, op_seek},
    {500, 0, 1, op_dup},
    {350, 0, 1, op_close},
    {150, 0, 1, op_flags},
    {200, 0, 1, op_names},
    {30, 0, 1, op_sync},
    {400, 0, 1, op_read},
    {100, 0, 1, op_map},
    {100, 1, 1, op_direct},
    {200, 0, 1, op_stream_open},
    {600, 0, 1, op_stream_write},
    {200, 0, 1, op_stream_other},
    {50, 0, 0, op_limited},
    {20, 0, 0, op_fork},
    {8, 0, 0, op_clone_with_files},
    {8, 0, 0, op_vfork},
    {2, 0, 0, op_spawn},
    {10, 0, 0, op_threads},
    {15, 0, 0, op_reset},
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

static void one_of(int only_writing, int only_simple) {
  int all = 0;
  for (int n = 0; n < OPERATIONS; n++) all += operations[n].weight;
  for (;;) {
    int left = below(all);
    for (int n = 0; n < OPERATIONS; n++) {
      left -= operations[n].weight;
      if (left >= 0) continue;
      if ((only_writing && !operations[n].is_writing) || (only_simple && !operations[n].is_simple)) break;
      operations[n].run();
      return;
    }
  }
}
static void one_that_writes(void) { one_of(1, 1); }
static void one_of_any(void) { one_of(0, 1); }

static void on_file_too_large(int signal) {
  (void)signal;
  file_too_large++;
}

static int spawned(int fd, size_t bytes) {
  char *block = calloc(1, bytes + 1);
  return write(fd, block, bytes) == (ssize_t)bytes ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc == 4 && strcmp(argv[1], "spawned") == 0) return spawned(atoi(argv[2]), strtoul(argv[3], NULL, 10));
  if (argc < 6) return 2;
  program = realpath(argv[0], NULL);
  uint64_t seed = strtoull(argv[1], NULL, 10);
  scale = atoi(argv[2]);
  long count = strtol(argv[3], NULL, 10);
  char *kept = argc > 6 ? calloc(1, count + 1) : NULL;
  if (kept) {
    int fd = open(argv[6], O_RDONLY);
    if (read(fd, kept, count) != count) fail(argv[6]);
    close(fd);
  }
  int log = open(argv[5], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (log < 0 || chdir(argv[4])) fail(argv[4]);
  close_range(LOG, log - 1, 0);
  if (log != LOG && dup2(log, LOG) != LOG) fail("dup2");
  data = mmap(NULL, DATA + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED || mprotect(data + DATA, PAGE, PROT_NONE)) fail("mmap");
  for (size_t n = 0; n < DATA / 8; n++) ((uint64_t *)data)[n] = mix(seed + n);
  signal(SIGXFSZ, on_file_too_large);
  signal(SIGPIPE, SIG_IGN);
  start_anew();
  for (long n = 0; n < count; n++) {
    if (kept && kept[n] != '1') continue;
    state = mix(seed) ^ mix(n);
    say("%ld ", n);
    one_of(0, 0);
    say("\n");
  }
  say("end ");
  op_reset();
  flush_log();
  return 0;
}
