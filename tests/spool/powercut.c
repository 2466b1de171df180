/* Records the changes that a program makes to its database files, so that a test can build the files that a power cut
 * would leave.
 *
 * The library is preloaded into a process (LD_PRELOAD). After every write, truncation and flush of a file whose path
 * contains POWERCUT_MATCH, it appends a record of the call to the file POWERCUT_LOG:
 *
 *     kind (1 byte: W, T, S), file (1 byte), offset or size (8 bytes), length (4 bytes), data
 *     N, file, 0, length, name      the file was opened for the first time
 *     U, file                       the file was removed
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 4096, NAMES = 64 };
static char names[NAMES][512];
static int known, file_of[FILES];
static int log_fd = -1;
static const char *match;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void begin(void) {
    if (log_fd >= 0 || !getenv("POWERCUT_LOG")) return;
    match = getenv("POWERCUT_MATCH");
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    log_fd = real(getenv("POWERCUT_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(char kind, int file, int64_t at, uint32_t length, const void *data) {
    char head[14];
    head[0] = kind;
    head[1] = (char)file;
    memcpy(head + 2, &at, 8);
    memcpy(head + 10, &length, 4);
    struct iovec parts[2] = {{head, 14}, {(void *)data, length}};
    /* A single call, so that no other process can write a record between the two parts. */
    if (writev(log_fd, parts, length ? 2 : 1) < 0) abort();
}

static void opened(int fd, const char *path) {
    begin();
    if (fd < 0 || fd >= FILES) return;
    file_of[fd] = 0;
    if (log_fd < 0 || !match || !strstr(path, match)) return;
    pthread_mutex_lock(&lock);
    int file = 0;
    while (file < known && strcmp(names[file], path)) file++;
    if (file == known && known < NAMES) {
        strncpy(names[known++], path, sizeof names[0] - 1);
        note('N', file, 0, strlen(path), path);
    }
    file_of[fd] = file + 1;
    pthread_mutex_unlock(&lock);
}

static int watched(int fd) { return fd >= 0 && fd < FILES ? file_of[fd] - 1 : -1; }

#define OPEN(NAME)                                                       \
    int NAME(const char *path, int flags, ...) {                         \
        static int (*real)(const char *, int, ...);                      \
        if (!real) real = dlsym(RTLD_NEXT, #NAME);                       \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;        \
        va_end(rest);                                                    \
        int fd = real(path, flags, mode);                                \
        opened(fd, path);                                                \
        return fd;                                                       \
    }
OPEN(open)
OPEN(open64)

#define PWRITE(NAME)                                                          \
    ssize_t NAME(int fd, const void *data, size_t length, off_t at) {         \
        static ssize_t (*real)(int, const void *, size_t, off_t);             \
        if (!real) real = dlsym(RTLD_NEXT, #NAME);                            \
        ssize_t done = real(fd, data, length, at);                            \
        if (done > 0 && watched(fd) >= 0) note('W', watched(fd), at, done, data); \
        return done;                                                          \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(NAME)                                                   \
    int NAME(int fd, off_t size) {                                       \
        static int (*real)(int, off_t);                                  \
        if (!real) real = dlsym(RTLD_NEXT, #NAME);                       \
        int failed = real(fd, size);                                     \
        if (!failed && watched(fd) >= 0) note('T', watched(fd), size, 0, 0); \
        return failed;                                                   \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(NAME)                                                       \
    int NAME(int fd) {                                                   \
        static int (*real)(int);                                         \
        if (!real) real = dlsym(RTLD_NEXT, #NAME);                       \
        int failed = real(fd);                                           \
        if (!failed && watched(fd) >= 0) note('S', watched(fd), 0, 0, 0); \
        return failed;                                                   \
    }
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    static int (*real)(const char *);
    if (!real) real = dlsym(RTLD_NEXT, "unlink");
    int failed = real(path);
    pthread_mutex_lock(&lock);
    for (int file = 0; !failed && file < known; file++)
        if (!strcmp(names[file], path)) note('U', file, 0, 0, 0);
    pthread_mutex_unlock(&lock);
    return failed;
}

int close(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "close");
    if (fd >= 0 && fd < FILES) file_of[fd] = 0;
    return real(fd);
}
