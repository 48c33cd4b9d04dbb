// lost_write CASE FILE: writes 64 MiB and asks for them to be on the disk, in one of eleven ways. Exits 0 if every call
// said that it went well, 3 if one reported an error.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 64 << 10, BLOCKS = 1024 };
static char block[BLOCK];
static const char *path;

// An error that the program hears of ends it: that is all it has to do.
static long heard(const char *call, long result) {
  if (result >= 0) return result;
  perror(call);
  _exit(3);
}

static int open_file(int flags) { return heard("open", open(path, flags, 0644)); }
static void write_all(int fd) {
  for (int n = 0; n < BLOCKS; n++) heard("write", write(fd, block, BLOCK));
}
static void sync_and_close(int fd) {
  heard("fsync", fsync(fd));
  heard("close", close(fd));
}

static void write_fsync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  sync_and_close(fd);
}

static void write_fdatasync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  heard("fdatasync", fdatasync(fd));
}

static void pwrite_fsync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  for (int n = 0; n < BLOCKS; n++) heard("pwrite", pwrite(fd, block, BLOCK, (off_t)n * BLOCK));
  sync_and_close(fd);
}

static void pwrite_fdatasync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  for (int n = BLOCKS; n-- > 0;) heard("pwrite", pwrite(fd, block, BLOCK, (off_t)n * BLOCK));
  heard("fdatasync", fdatasync(fd));
}

static void writev_fsync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  struct iovec parts[] = {{block, BLOCK}, {block, BLOCK}, {block, BLOCK}, {block, BLOCK}};
  for (int n = 0; n < BLOCKS / 4; n++) heard("writev", writev(fd, parts, 4));
  sync_and_close(fd);
}

static void stdio_fsync(void) {
  FILE *file = fopen(path, "w");
  heard("fopen", file ? 0 : -1);
  for (int n = 0; n < BLOCKS; n++) heard("fwrite", fwrite(block, 1, BLOCK, file) == BLOCK ? 0 : -1);
  heard("fflush", fflush(file));
  heard("fsync", fsync(fileno(file)));
  heard("fclose", fclose(file));
}

static void write_through_dup(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  int twin = heard("dup", dup(fd));
  write_all(twin);
  heard("close", close(twin));
  sync_and_close(fd);
}

static void fsync_through_dup(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  int twin = heard("dup2", dup2(fd, 100));
  heard("close", close(fd));
  sync_and_close(twin);
}

static void child_writes(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  pid_t child = heard("fork", fork());
  if (child == 0) {
    write_all(fd);
    _exit(0);
  }
  int status;
  heard("waitpid", waitpid(child, &status, 0));
  heard("the child", status == 0 ? 0 : -1);
  sync_and_close(fd);
}

static void close_reopen_fsync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  heard("close", close(fd));
  sync_and_close(open_file(O_WRONLY));
}

static void truncate_fsync(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  heard("ftruncate", ftruncate(fd, (off_t)(BLOCKS - 1) * BLOCK));
  sync_and_close(fd);
}

static const struct {
  const char *name;
  void (*run)(void);
} cases[] = {
    {"write_fsync", write_fsync},
    {"write_fdatasync", write_fdatasync},
    {"pwrite_fsync", pwrite_fsync},
    {"pwrite_fdatasync", pwrite_fdatasync},
    {"writev_fsync", writev_fsync},
    {"stdio_fsync", stdio_fsync},
    {"write_through_dup", write_through_dup},
    {"fsync_through_dup", fsync_through_dup},
    {"child_writes", child_writes},
    {"close_reopen_fsync", close_reopen_fsync},
    {"truncate_fsync", truncate_fsync},
};

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  path = argv[2];
  memset(block, 'x', BLOCK);
  for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
    if (strcmp(cases[n].name, argv[1]) == 0) {
      cases[n].run();
      return 0;
    }
  }
  return 2;
}
