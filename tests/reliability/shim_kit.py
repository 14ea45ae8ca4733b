"""A library, built by the machine's own compiler, that fails system calls on the files of a folder.

It is loaded before the C library (``LD_PRELOAD``). Python's own files are left alone: only calls on
paths and descriptors below the folder that ``SHIM_ROOT`` names are counted and failed.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static const char *root;
static long left = -1, counted;
static int code, sticks, fired, active;
static char failed[512];

__attribute__((constructor)) static void begin(void) { root = getenv("SHIM_ROOT"); }
void shim_arm(long after, int error, int for_good) {
    fired = 0; code = error; sticks = for_good; counted = 0; left = after; active = 1;
}
long shim_counted(void) { return counted; }
/* What failed first, None if nothing did. */
const char *shim_disarm(void) { active = 0; return fired ? failed : 0; }

static __thread char found[4096];
/* With which error the system refuses which calls, by the beginning of their names. */
static int can_fail(const char *name) {
    const char *kinds;
    switch (code) {
    case EIO: kinds = "read pread write pwrite fsync fdatasync ftruncate open stat lstat fstat "
                      "access unlink rename link mkdir"; break;
    case ENOSPC: kinds = "write pwrite ftruncate open mkdir rename link inotify_add"; break;
    case EMFILE: kinds = "open inotify_init"; break;
    case ENOMEM: kinds = "open mmap stat lstat mkdir link inotify"; break;
    case EACCES: kinds = "open stat lstat fstatat unlink rename link mkdir rmdir"; break;
    default: kinds = "fcntl flock";  /* ENOLCK */
    }
    for (const char *at = kinds; *at; at += strcspn(at, " "), at += *at == ' ')
        if (!strncmp(name, at, strcspn(at, " "))) return 1;
    return 0;
}
static int counts(const char *name) {
    if (!can_fail(name)) return 0;
    if (fired) { if (!sticks) return 0; errno = code; return 1; }
    __atomic_fetch_add(&counted, 1, __ATOMIC_SEQ_CST);
    if (left < 0 || __atomic_fetch_sub(&left, 1, __ATOMIC_SEQ_CST) != 0) return 0;
    const char *file = strrchr(found, '/');
    snprintf(failed, sizeof failed, "%s %s", name, file ? file + 1 : found);
    fired = 1; errno = code;
    return 1;
}
static int below(const char *path) {
    if (!root || !path || strncmp(path, root, strlen(root))) return 0;
    snprintf(found, sizeof found, "%s", path);
    return 1;
}
static int on(int fd) {
    char link[64], path[4096];
    if (fd < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return below(path);
}
#define FAILS(is_ours) (active && (is_ours) && counts(__func__))
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define PATH1(type, name, params, args, path) \
    type name params { REAL(name); if (FAILS(below(path))) return -1; return real args; }
#define AT1(type, name, params, args, fd, path) \
    type name params { REAL(name); \
        if (FAILS(path && path[0] == '/' ? below(path) : on(fd))) return -1; return real args; }
#define FD1(type, name, params, args, fd) \
    type name params { REAL(name); if (FAILS(on(fd))) return -1; return real args; }

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
        REAL(name); if (FAILS(below(path))) return -1; return real(path, flags, mode); }
#define OPENAT(name) \
    int name(int fd, const char *path, int flags, ...) { \
        va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list); \
        REAL(name); \
        if (FAILS(path[0] == '/' ? below(path) : on(fd))) return -1; \
        return real(fd, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
FD1(ssize_t, read, (int fd, void *b, size_t n), (fd, b, n), fd)
FD1(ssize_t, pread, (int fd, void *b, size_t n, off_t o), (fd, b, n, o), fd)
FD1(ssize_t, pread64, (int fd, void *b, size_t n, off64_t o), (fd, b, n, o), fd)
FD1(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), fd)
FD1(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), fd)
FD1(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), fd)
FD1(int, fsync, (int fd), (fd), fd)
FD1(int, fdatasync, (int fd), (fd), fd)
FD1(int, ftruncate, (int fd, off_t n), (fd, n), fd)
FD1(int, ftruncate64, (int fd, off64_t n), (fd, n), fd)
FD1(int, fchmod, (int fd, mode_t m), (fd, m), fd)
FD1(int, fstat, (int fd, struct stat *s), (fd, s), fd)
FD1(int, fstat64, (int fd, struct stat64 *s), (fd, s), fd)
int flock(int fd, int how);
FD1(int, flock, (int fd, int how), (fd, how), how & 8 ? -1 : fd)
PATH1(int, stat, (const char *p, struct stat *s), (p, s), p)
PATH1(int, stat64, (const char *p, struct stat64 *s), (p, s), p)
PATH1(int, lstat, (const char *p, struct stat *s), (p, s), p)
PATH1(int, lstat64, (const char *p, struct stat64 *s), (p, s), p)
PATH1(int, access, (const char *p, int m), (p, m), p)
PATH1(int, unlink, (const char *p), (p), p)
PATH1(int, rmdir, (const char *p), (p), p)
PATH1(int, mkdir, (const char *p, mode_t m), (p, m), p)
PATH1(int, rename, (const char *p, const char *q), (p, q), p)
PATH1(int, link, (const char *p, const char *q), (p, q), p)
AT1(int, unlinkat, (int d, const char *p, int f), (d, p, f), d, p)
AT1(int, fstatat, (int d, const char *p, struct stat *s, int f), (d, p, s, f), d, p)
AT1(int, fstatat64, (int d, const char *p, struct stat64 *s, int f), (d, p, s, f), d, p)
AT1(int, faccessat, (int d, const char *p, int m, int f), (d, p, m, f), d, p)
AT1(int, linkat, (int d, const char *p, int e, const char *q, int f), (d, p, e, q, f), e, q)
AT1(int, renameat, (int d, const char *p, int e, const char *q), (d, p, e, q), d, p)
void *mmap(void *a, size_t n, int p, int f, int fd, off_t o) {
    REAL(mmap); if (FAILS(on(fd))) return (void *)-1; return real(a, n, p, f, fd, o); }
void *mmap64(void *a, size_t n, int p, int f, int fd, off64_t o) {
    REAL(mmap64); if (FAILS(on(fd))) return (void *)-1; return real(a, n, p, f, fd, o); }
int inotify_init1(int flags);
int inotify_init1(int flags) { REAL(inotify_init1); if (FAILS(1)) return -1; return real(flags); }
int inotify_add_watch(int fd, const char *p, unsigned m);
int inotify_add_watch(int fd, const char *p, unsigned m) {
    REAL(inotify_add_watch); if (FAILS(below(p))) return -1; return real(fd, p, m); }
int fcntl64(int fd, int command, ...);
#define FCNTL(name) \
    int name(int fd, int command, ...) { \
        va_list list; va_start(list, command); void *a = va_arg(list, void *); va_end(list); \
        REAL(name); \
        /* To give a lock back does not fail. */ \
        if (command == F_SETLK && ((struct flock *)a)->l_type != F_UNLCK && FAILS(on(fd))) \
            return -1; \
        return real(fd, command, a); }
FCNTL(fcntl) FCNTL(fcntl64)
"""


def build(folder: Path) -> Path:
    """Compile it; the test is skipped with a word where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("this machine has no C compiler")
    source, library = folder / "shim.c", folder / "shim.so"
    source.write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, source, "-ldl"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the C compiler here does not build the shim: {done.stderr[:200]}")
    return library
