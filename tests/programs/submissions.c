// submissions FILE WRITES TIMES: submits so many writes of 1 MiB at once to an io_uring, so often, each time waiting until
// all of them have been made. The file has its full size from the beginning.
#define _GNU_SOURCE
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BYTES = 1 << 20 };

static void fail(const char *what, int error) {
  fprintf(stderr, "%s: %s\n", what, strerror(error));
  exit(1);
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  int writes = atoi(argv[2]), times = atoi(argv[3]);
  static char buffer[BYTES];
  memset(buffer, 'x', BYTES);
  int fd = open(argv[1], O_WRONLY | O_CREAT, 0644);
  if (fd < 0 || ftruncate(fd, (off_t)writes * times * BYTES)) return 1;
  struct io_uring ring;
  int error = io_uring_queue_init(writes, &ring, 0);
  if (error < 0) fail("io_uring_queue_init", -error);
  for (int time = 0; time < times; time++) {
    for (int n = 0; n < writes; n++) {
      io_uring_prep_write(io_uring_get_sqe(&ring), fd, buffer, BYTES, ((off_t)time * writes + n) * BYTES);
    }
    int submitted = io_uring_submit(&ring);
    if (submitted != writes) fail("io_uring_submit", submitted < 0 ? -submitted : 0);
    for (int n = 0; n < writes; n++) {
      struct io_uring_cqe *done;
      error = io_uring_wait_cqe(&ring, &done);
      if (error < 0) fail("io_uring_wait_cqe", -error);
      if (done->res != BYTES) fail("a write", done->res < 0 ? -done->res : 0);
      io_uring_cqe_seen(&ring, done);
    }
  }
  return 0;
}
