// lost_write CASE FILE: writes 64 MiB and asks for them to be on the disk, in one of fifteen ways. Exits 0 if every call
// said that it went well, 3 if one reported an error.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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

// One that was there before the loss hears of it although another one has heard already.
static void fsync_through_second(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  int second = open_file(O_RDWR);
  write_all(fd);
  if (fsync(fd) < 0) perror("the first");
  sync_and_close(second);
}

static void fsync_after_exec(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  heard("dup2", dup2(fd, 100));
  heard("execl", execl("/proc/self/exe", "lost_write", "fsync_inherited", path, NULL));
}

static void fsync_inherited(void) { sync_and_close(100); }

static void write_syncfs(void) {
  int fd = open_file(O_WRONLY | O_CREAT | O_TRUNC);
  write_all(fd);
  heard("syncfs", syncfs(fd));
}

static void mmap_msync(void) {
  int fd = open_file(O_RDWR | O_CREAT | O_TRUNC);
  heard("ftruncate", ftruncate(fd, (off_t)BLOCKS * BLOCK));
  char *map = mmap(NULL, (size_t)BLOCKS * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  heard("mmap", map == MAP_FAILED ? -1 : 0);
  for (int n = 0; n < BLOCKS; n++) memcpy(map + (size_t)n * BLOCK, block, BLOCK);
  heard("msync", msync(map, (size_t)BLOCKS * BLOCK, MS_SYNC));
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
    {"fsync_through_second", fsync_through_second},
    {"fsync_after_exec", fsync_after_exec},
    {"fsync_inherited", fsync_inherited},
    {"write_syncfs", write_syncfs},
    {"mmap_msync", mmap_msync},
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
