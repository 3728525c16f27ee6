/* A disk that hangs, for whoever preloads this: while the file FAKE_HANG_WHILE exists, calls that
 * open, look at, make, rename or remove a path which contains FAKE_HANG do not return. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
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

int unlink(const char *path) {
    static int (*real)(const char *);
    wait_for(path);
    return REAL("unlink")(path);
}

int rmdir(const char *path) {
    static int (*real)(const char *);
    wait_for(path);
    return REAL("rmdir")(path);
}

int mkdir(const char *path, mode_t mode) {
    static int (*real)(const char *, mode_t);
    wait_for(path);
    return REAL("mkdir")(path, mode);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    wait_for(from);
    wait_for(to);
    return REAL("rename")(from, to);
}
