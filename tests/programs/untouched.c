// untouched DIRECTORY MOUNT: holds a lock, a lease, a mount and its descriptor numbers while it writes 32 MiB to each
// file, and prints what became of them, a line each.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef F_SETLEASE
#define F_SETLEASE 1024
#endif

static volatile sig_atomic_t lease_breaks;
static void on_lease_break(int signal) {
  (void)signal;
  lease_breaks++;
}

static void say(const char *what, int fine) { printf("%s: %s\n", what, fine ? "fine" : strerror(errno)); }

static int create(const char *dir, const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%s/%s", dir, name);
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) {
    perror(path);
    exit(1);
  }
  return fd;
}

static void write_32_mib(int fd) {
  static char block[64 << 10];
  memset(block, 'x', sizeof block);
  for (int n = 0; n < 512; n++) {
    if (write(fd, block, sizeof block) != sizeof block) {
      perror("write");
      exit(1);
    }
  }
}

static int descriptors(void) {
  DIR *dir = opendir("/proc/self/fd");
  int count = 0;
  while (readdir(dir)) count++;
  closedir(dir);
  return count;
}

// Locks are a process's own, so only another process can see whether this one still has it.
static int still_locked(int fd) {
  pid_t child = fork();
  if (child == 0) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    _exit(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? 0 : 1);
  }
  int status;
  waitpid(child, &status, 0);
  errno = ENOLCK;
  return status == 0;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  const char *dir = argv[1], *mount_point = argv[2];
  int before = descriptors();

  int database = create(dir, "database");
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  say("lock taken", fcntl(database, F_SETLK, &lock) == 0);
  write_32_mib(database);
  say("lock held after the writes", still_locked(database));

  int leased = create(dir, "leased");
  signal(SIGIO, on_lease_break);
  write_32_mib(leased);
  say("lease taken", fcntl(leased, F_SETLEASE, F_WRLCK) == 0);
  write_32_mib(leased);

  // whatever cleans up behind the writes has had its time
  sleep(2);
  say("lock held later", still_locked(database));
  errno = EAGAIN;
  say("lease unbroken", lease_breaks == 0);
  errno = EMFILE;
  say("descriptors", descriptors() == before + 2);
  fcntl(leased, F_SETLEASE, F_UNLCK);
  close(leased);
  close(database);

  int last = create(mount_point, "last");
  write_32_mib(last);
  close(last);
  say("unmounted", umount2(mount_point, 0) == 0);
  return 0;
}
