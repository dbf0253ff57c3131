/* Preloaded into a process: appends every name that it looks up to the file that LOOKUPS names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*lookup)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    const char *path = getenv("LOOKUPS");
    int file = path && node ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file >= 0) {
        char line[256];
        strncpy(line, node, sizeof line - 2);
        line[sizeof line - 2] = 0;
        strcat(line, "\n");
        if (write(file, line, strlen(line)) < 0) abort();
        close(file);
    }
    return ((lookup)dlsym(RTLD_NEXT, "getaddrinfo"))(node, service, hints, result);
}
