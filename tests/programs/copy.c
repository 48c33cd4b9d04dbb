// copy FROM TO: copies by read and write, 64 KiB at a time.
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static char buffer[64 << 10];

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  int from = open(argv[1], O_RDONLY), to = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (from < 0 || to < 0) {
    perror("open");
    return 1;
  }
  ssize_t bytes;
  while ((bytes = read(from, buffer, sizeof buffer)) > 0) {
    if (write(to, buffer, bytes) != bytes) {
      perror("write");
      return 1;
    }
  }
  return bytes < 0 || close(to) != 0;
}
