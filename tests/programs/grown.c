/* grown DIR: each of the kernel's copies, of a source that is made longer after the first call. A copy of which nothing
 * was done yet may be refused; a later call of it must not, because programs then forget what was copied. Says how the
 * last call of each, the first of a new copy, ended. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <unistd.h>

enum { SMALL = 900 << 10, LONG = 4 << 20, HEADER = 512 };

static int from, to;
static ssize_t by_copy_file_range(off_t *at) { return copy_file_range(from, at, to, NULL, LONG, 0); }
static ssize_t by_sendfile(off_t *at) { return sendfile(to, from, at, LONG); }

static void copy(const char *name, ssize_t (*call)(off_t *), int has_offset, off_t start)
{
    off_t offset = start, *at = has_offset ? &offset : NULL;
    if (ftruncate(from, SMALL) || ftruncate(to, 0) || lseek(to, 0, SEEK_SET) || lseek(from, start, SEEK_SET) != start)
        exit(1);
    ssize_t first = call(at), then = -1;
    if (first <= 0 || ftruncate(from, 2 * LONG) || (then = call(at)) <= 0) {
        printf("%s from %d: %zd, then %zd (%s)\n", name, (int)start, first, then, strerror(errno));
        exit(1);
    }
    offset = 0;
    errno = 0;
    if (lseek(from, 0, SEEK_SET))
        exit(1);
    call(at);
    printf("%s from %d: %s\n", name, (int)start, strerror(errno));
}

int main(int argc, char **argv)
{
    char block[1 << 16];
    if (argc != 2 || chdir(argv[1]))
        return 1;
    from = open("from", O_RDWR | O_CREAT | O_EXCL, 0600);
    to = open("to", O_RDWR | O_CREAT | O_EXCL, 0600);
    memset(block, 'x', sizeof block);
    for (int done = 0; done < SMALL; done += sizeof block)
        if (write(from, block, sizeof block) != sizeof block)
            return 1;
    for (int has_offset = 0; has_offset < 2; has_offset++)
        for (int start = 0; start <= HEADER; start += HEADER) {
            copy("copy_file_range", by_copy_file_range, has_offset, start);
            copy("sendfile", by_sendfile, has_offset, start);
        }
    return unlink("from") || unlink("to");
}
