// A load generator: one thread, epoll, a closed loop on every connection.
//
//   load TARGET --path P --body FILE --connections N --seconds S [--accept TYPE] [--once] [--cpu N]
//        [--split US] [--fresh] [--vary]
//
// TARGET is unix:PATH or 127.0.0.1:PORT. Each connection sends the request again as soon as the
// answer is complete, and connects anew where the server closes. With --once each connection sends
// it once, and S is only the limit. With --split the body is a write of its own, US microseconds
// after the head; with --fresh each request has a new connection, which the client closes after
// the answer; with --vary each head has another value of traceparent. Prints one line of JSON;
// sizes are of decoded bodies, an answer that is not whole or not 200 is an error, latencies are
// from send to the last byte.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST_SAMPLES 2000000
#define MOST_HEAD 16384

enum state { HEAD, SIZE_LINE, CHUNK, CHUNK_END, TRAILER, COUNTED, WHOLE };

struct connection {
    int fd;
    enum state state;
    char head[MOST_HEAD];
    size_t head_size;
    uint64_t left; // bytes of this chunk or of the whole body
    int line;      // characters of the running size line or trailer line
    int close_after, fresh;
    int64_t sent_at;
    int owes_body;           // its head is sent, its body is not
    struct connection *next; // of those
};

static struct sockaddr_storage target;
static socklen_t target_size;
static char *request;
static size_t request_size, head_size;
static char *varied; // the digits of each head's own, in the request
static uint64_t variations;
static int epoll_fd, once, fresh, vary, open_count;
static int64_t split = -1; // nanoseconds from head to body; -1: both are one write
static struct connection *first_split, *last_split;
static int64_t deadline;
static uint64_t answers, errors, bytes, reconnects;
static uint32_t *samples;
static size_t sample_count;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// --- one connection ----------------------------------------------------------------------------

static void open_connection(struct connection *c) {
    int one = 1;
    c->fd = socket(target.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&target, target_size) != 0)
        fail("connect");
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) != 0)
        fail("epoll_ctl");
    c->fresh = 1;
    open_count++;
}

static void close_connection(struct connection *c) {
    close(c->fd);
    c->fd = -1;
    open_count--;
}

static void send_part(struct connection *c, size_t from, size_t to) {
    if (send(c->fd, request + from, to - from, MSG_NOSIGNAL) != (ssize_t)(to - from))
        fail("the request does not fit into the socket");
}

static void ask(struct connection *c) {
    c->state = HEAD;
    c->head_size = 0;
    c->line = 0;
    c->sent_at = now_ns();
    if (varied) {
        char digits[17];
        sprintf(digits, "%016llx", (unsigned long long)++variations);
        memcpy(varied, digits, 16);
    }
    if (split < 0) {
        send_part(c, 0, request_size);
        return;
    }
    send_part(c, 0, head_size);
    c->next = NULL;
    c->owes_body = 1;
    if (first_split)
        last_split->next = c;
    else
        first_split = c;
    last_split = c;
}

// Send the bodies whose time has come; return whether others wait for theirs.
static int send_bodies(void) {
    while (first_split && now_ns() - first_split->sent_at >= split) {
        struct connection *c = first_split;
        first_split = c->next;
        c->owes_body = 0;
        send_part(c, head_size, request_size);
    }
    return first_split != NULL;
}

static void ask_again(struct connection *c) {
    if (once || now_ns() >= deadline) {
        close_connection(c);
        return;
    }
    if (c->close_after || fresh) {
        close_connection(c);
        open_connection(c);
        reconnects++;
    } else {
        c->fresh = 0;
    }
    ask(c);
}

static void on_lost(struct connection *c) {
    if (c->owes_body)
        fail("the server closed a connection before it had the body");
    // A server may close an idle connection just as the next request is sent: not an error.
    int stale = c->state == HEAD && c->head_size == 0 && !c->fresh;
    if (!stale)
        errors++;
    close_connection(c);
    if ((once && !stale) || now_ns() >= deadline)
        return;
    open_connection(c);
    reconnects++;
    ask(c);
}

// --- answers -----------------------------------------------------------------------------------

static void read_head(struct connection *c) {
    char *length = strcasestr(c->head, "\r\ncontent-length:");
    if (strncmp(c->head, "HTTP/1.1 200", 12) != 0)
        errors++;
    c->close_after = strcasestr(c->head, "\r\nconnection: close") != NULL;
    if (strcasestr(c->head, "\r\ntransfer-encoding: chunked")) {
        c->state = SIZE_LINE;
        c->left = 0;
    } else if (length) {
        c->left = strtoull(length + 17, NULL, 10);
        c->state = c->left ? COUNTED : WHOLE;
    } else {
        fail("an answer without framing");
    }
}

static size_t take_head(struct connection *c, const char *data, size_t size) {
    size_t before = c->head_size;
    size_t room = MOST_HEAD - 1 - before;
    size_t taken = size < room ? size : room;
    memcpy(c->head + before, data, taken);
    c->head[before + taken] = 0;
    char *end = strstr(c->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
    if (!end) {
        if (taken == room)
            fail("an answer's head is too large");
        c->head_size += taken;
        return taken;
    }
    end[2] = 0;
    c->head_size = (size_t)(end + 4 - c->head);
    read_head(c);
    return c->head_size - before;
}

static size_t take_counted(struct connection *c, size_t size, enum state after) {
    size_t taken = size < c->left ? size : (size_t)c->left;
    bytes += taken;
    c->left -= taken;
    if (c->left == 0)
        c->state = after;
    return taken;
}

static void take_size_line(struct connection *c, char byte) {
    if (byte == '\n') {
        c->state = c->left ? CHUNK : TRAILER;
        c->line = 0;
    } else if (byte != '\r') {
        int digit = byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10;
        if (digit < 0 || digit > 15)
            fail("bad chunk size");
        c->left = 16 * c->left + (uint64_t)digit;
    }
}

static size_t take(struct connection *c, const char *data, size_t size) {
    switch (c->state) {
    case HEAD:
        return take_head(c, data, size);
    case COUNTED:
        return take_counted(c, size, WHOLE);
    case CHUNK:
        return take_counted(c, size, CHUNK_END);
    case SIZE_LINE:
        take_size_line(c, *data);
        return 1;
    case CHUNK_END:
        if (*data == '\n')
            c->state = SIZE_LINE;
        return 1;
    case TRAILER:
        if (*data == '\n') {
            if (c->line == 0)
                c->state = WHOLE;
            c->line = 0;
        } else if (*data != '\r') {
            c->line++;
        }
        return 1;
    case WHOLE:
        fail("more than the answer came");
    }
    return 0;
}

static void complete(struct connection *c) {
    if (c->owes_body)
        fail("the server answered before it had the body");
    int64_t now = now_ns();
    if (once || now < deadline) {
        answers++;
        if (sample_count < MOST_SAMPLES)
            samples[sample_count++] = (uint32_t)((now - c->sent_at) / 1000);
    }
    ask_again(c);
}

static void on_readable(struct connection *c) {
    static char data[1 << 16];
    ssize_t got = recv(c->fd, data, sizeof data, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        on_lost(c);
        return;
    }
    for (size_t at = 0; at < (size_t)got;)
        at += take(c, data + at, (size_t)got - at);
    if (c->state == WHOLE)
        complete(c);
}

// --- the process -------------------------------------------------------------------------------

static void set_target(const char *text) {
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un *address = (struct sockaddr_un *)&target;
        address->sun_family = AF_UNIX;
        strncpy(address->sun_path, text + 5, sizeof address->sun_path - 1);
        target_size = sizeof *address;
        return;
    }
    struct sockaddr_in *address = (struct sockaddr_in *)&target;
    const char *port = strrchr(text, ':');
    address->sin_family = AF_INET;
    address->sin_port = htons((uint16_t)atoi(port ? port + 1 : text));
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    target_size = sizeof *address;
}

static void make_request(const char *path, const char *file, const char *accept) {
    FILE *body = fopen(file, "rb");
    if (!body)
        fail(file);
    request = calloc(1, 1 << 20);
    int head = sprintf(request, "POST %s HTTP/1.1\r\nHost: localhost\r\n"
                                "Content-Type: application/json\r\nAccept: %s\r\n"
                                "User-Agent: bench\r\nAuthorization: Bearer none\r\n",
                       path, accept);
    if (vary) {
        head += sprintf(request + head, "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-");
        varied = request + head;
        head += sprintf(varied, "%016x-01\r\n", 0);
    }
    char *text = request + (1 << 19);
    size_t size = fread(text, 1, (1 << 19) - 1024, body);
    fclose(body);
    head += sprintf(request + head, "Content-Length: %zu\r\n\r\n", size);
    memmove(request + head, text, size);
    head_size = (size_t)head;
    request_size = head_size + size;
}

static int by_size(const void *a, const void *b) {
    uint32_t left = *(const uint32_t *)a, right = *(const uint32_t *)b;
    return (left > right) - (left < right);
}

static uint32_t percentile(double part) {
    return sample_count ? samples[(size_t)(part * (double)(sample_count - 1))] : 0;
}

int main(int argc, char **argv) {
    const char *path = "/", *file = "/dev/null", *accept = "*/*";
    double seconds = 1;
    int connections = 1;
    if (argc < 2)
        return 2;
    for (int i = 2; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--path") == 0)
            path = value;
        else if (strcmp(argv[i], "--body") == 0)
            file = value;
        else if (strcmp(argv[i], "--accept") == 0)
            accept = value;
        else if (strcmp(argv[i], "--connections") == 0)
            connections = atoi(value);
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds = atof(value);
        else if (strcmp(argv[i], "--once") == 0)
            once = 1;
        else if (strcmp(argv[i], "--fresh") == 0)
            fresh = 1;
        else if (strcmp(argv[i], "--vary") == 0)
            vary = 1;
        else if (strcmp(argv[i], "--split") == 0)
            split = atoll(value) * 1000;
        else if (strcmp(argv[i], "--cpu") == 0) {
            cpu_set_t set;
            CPU_ZERO(&set);
            CPU_SET(atoi(value), &set);
            sched_setaffinity(0, sizeof set, &set);
        }
    }
    set_target(argv[1]);
    make_request(path, file, accept);
    samples = malloc(sizeof *samples * MOST_SAMPLES);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int64_t started = now_ns();
    deadline = started + (int64_t)(seconds * 1e9);
    for (int i = 0; i < connections; i++) {
        open_connection(&all[i]);
        ask(&all[i]);
    }
    struct epoll_event events[256];
    // The answers still open at the deadline get two seconds more; then they are errors.
    while (open_count && now_ns() < deadline + 2000000000LL) {
        int count = epoll_wait(epoll_fd, events, 256, send_bodies() ? 0 : 100);
        for (int i = 0; i < count; i++)
            on_readable(events[i].data.ptr);
    }
    int64_t ended = now_ns();
    if (!once && ended > deadline)
        ended = deadline;
    errors += (uint64_t)open_count;
    qsort(samples, sample_count, sizeof *samples, by_size);
    printf("{\"answers\":%llu,\"errors\":%llu,\"bytes\":%llu,\"reconnects\":%llu,\"seconds\":%.6f,"
           "\"p50_us\":%u,\"p99_us\":%u}\n",
           (unsigned long long)answers, (unsigned long long)errors, (unsigned long long)bytes,
           (unsigned long long)reconnects, (double)(ended - started) / 1e9, percentile(0.5),
           percentile(0.99));
    return 0;
}
