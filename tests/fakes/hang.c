/* A disk that hangs, for whoever preloads this: while the file FAKE_HANG_WHILE exists, calls that
 * open or look at a path which contains FAKE_HANG do not return. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static void wait_for(const char *path) {
    const char *part = getenv("FAKE_HANG"), *gate = getenv("FAKE_HANG_WHILE");
    if (!part || !gate || !path || !strstr(path, part)) return;
    while (!access(gate, F_OK)) usleep(50000);
}

#define REAL(name) (real ? real : (real = (__typeof__(real))dlsym(RTLD_NEXT, name)))

#define OPEN(name)                                                   \
    int name(const char *path, int flags, ...) {                     \
        static int (*real)(const char *, int, ...);                  \
        va_list rest;                                                \
        va_start(rest, flags);                                       \
        int mode = va_arg(rest, int);                                \
        va_end(rest);                                                \
        wait_for(path);                                              \
        return REAL(#name)(path, flags, mode);                       \
    }
OPEN(open)
OPEN(open64)

#define STAT(name, buffer)                                           \
    int name(const char *path, struct buffer *into) {                \
        static int (*real)(const char *, struct buffer *);           \
        wait_for(path);                                              \
        return REAL(#name)(path, into);                              \
    }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
