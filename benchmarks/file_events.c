/* Counts what a process does to files below a folder, and ends it (SIGKILL) at the event with a given number, before it
 * is done, or halfway through where it is a write. For LD_PRELOAD; benchmarks/faults.py compiles and steers it.
 *
 * It stands between every library (Python, torch, safetensors, DeepSpeed) and libc, so that nothing that is written is
 * missed but what libc writes by itself (fwrite), of which a run has one file: lengths.npy. Linux. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char watched[PATH_MAX];
static size_t length; /* 0: not armed */
static int journal = -1, halves;
static long deadly, count;

/* From now on: folder without a slash at its end, a file that takes a line an event, the number to die at or 0, and
 * whether a write is to be cut in half. */
void arm_file_events(const char *folder, int file, long number, int half) {
    strcpy(watched, folder);
    journal = file, deadly = number, halves = half, count = 0, length = strlen(folder);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static void of_file(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, file == AT_FDCWD ? "/proc/self/cwd" : link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
}

static void of_name(int folder, const char *name, char *path) {
    if (*name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return;
    }
    of_file(folder, path);
    size_t size = strlen(path);
    snprintf(path + size, PATH_MAX - size, "/%s", name);
}

/* Whether a write is to be cut here. */
static int happens(const char *kind, const char *path) {
    if (strncmp(path, watched, length) || path[length] != '/' || !strcmp(path + length, "/output.txt")) return 0;
    long number = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    char line[PATH_MAX + 32];
    int size = snprintf(line, sizeof line, "%s\t%s\n", kind, path + length + 1);
    syscall(SYS_write, journal, line, size);
    if (number != deadly) return 0;
    if (halves) return 1;
    die();
    return 0;
}

static int on_name(const char *kind, int folder, const char *name) {
    char path[PATH_MAX];
    if (!length) return 0;
    of_name(folder, name, path);
    return happens(kind, path);
}

static int on_file(const char *kind, int file) {
    char path[PATH_MAX];
    if (!length) return 0;
    of_file(file, path);
    return happens(kind, path);
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))
#define WRITES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))

#define OPEN(name)                                                                             \
    int name(const char *path, int flags, ...) {                                               \
        va_list rest;                                                                          \
        va_start(rest, flags);                                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                \
        va_end(rest);                                                                          \
        if (WRITES(flags)) on_name("open", AT_FDCWD, path);                                    \
        return REAL(int, #name, const char *, int, mode_t)(path, flags, mode);                 \
    }
#define OPENAT(name)                                                                           \
    int name(int folder, const char *path, int flags, ...) {                                   \
        va_list rest;                                                                          \
        va_start(rest, flags);                                                                 \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                \
        va_end(rest);                                                                          \
        if (WRITES(flags)) on_name("open", folder, path);                                      \
        return REAL(int, #name, int, const char *, int, mode_t)(folder, path, flags, mode);    \
    }
#define FOPEN(name)                                                                            \
    FILE *name(const char *path, const char *mode) {                                           \
        if (strpbrk(mode, "wa+")) on_name("open", AT_FDCWD, path);                             \
        return REAL(FILE *, #name, const char *, const char *)(path, mode);                    \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int file, const void *bytes, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t, "write", int, const void *, size_t);
    if (on_file("write", file)) real(file, bytes, size / 2), die();
    return real(file, bytes, size);
}

ssize_t writev(int file, const struct iovec *parts, int number) {
    if (on_file("write", file)) {
        if (number) syscall(SYS_write, file, parts->iov_base, parts->iov_len / 2);
        die();
    }
    return REAL(ssize_t, "writev", int, const struct iovec *, int)(file, parts, number);
}

#define PWRITE(name)                                                                           \
    ssize_t name(int file, const void *bytes, size_t size, off_t at) {                         \
        ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, #name);           \
        if (on_file("write", file)) real(file, bytes, size / 2, at), die();                    \
        return real(file, bytes, size, at);                                                    \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t sendfile(int file, int from, off_t *at, size_t size) {
    ssize_t (*real)(int, int, off_t *, size_t) = dlsym(RTLD_NEXT, "sendfile");
    struct stat found;
    if (on_file("write", file)) fstat(from, &found), real(file, from, at, found.st_size / 2), die();
    return real(file, from, at, size);
}

ssize_t copy_file_range(int from, off_t *from_at, int file, off_t *at, size_t size, unsigned flags) {
    ssize_t (*real)(int, off_t *, int, off_t *, size_t, unsigned) = dlsym(RTLD_NEXT, "copy_file_range");
    struct stat found;
    if (on_file("write", file)) fstat(from, &found), real(from, from_at, file, at, found.st_size / 2, flags), die();
    return real(from, from_at, file, at, size, flags);
}

#define ON_FILE(kind, name)                                                                    \
    int name(int file) {                                                                       \
        on_file(kind, file);                                                                   \
        return REAL(int, #name, int)(file);                                                    \
    }
ON_FILE("fsync", fsync)
ON_FILE("fsync", fdatasync)

int rename(const char *from, const char *to) {
    on_name("rename", AT_FDCWD, from);
    return REAL(int, "rename", const char *, const char *)(from, to);
}

int renameat(int folder, const char *from, int other, const char *to) {
    on_name("rename", folder, from);
    return REAL(int, "renameat", int, const char *, int, const char *)(folder, from, other, to);
}

int mkdir(const char *path, mode_t mode) {
    on_name("mkdir", AT_FDCWD, path);
    return REAL(int, "mkdir", const char *, mode_t)(path, mode);
}

int unlink(const char *path) {
    on_name("unlink", AT_FDCWD, path);
    return REAL(int, "unlink", const char *)(path);
}

int rmdir(const char *path) {
    on_name("unlink", AT_FDCWD, path);
    return REAL(int, "rmdir", const char *)(path);
}

int unlinkat(int folder, const char *path, int flags) {
    on_name("unlink", folder, path);
    return REAL(int, "unlinkat", int, const char *, int)(folder, path, flags);
}
