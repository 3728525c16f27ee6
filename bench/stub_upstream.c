// A stand-in for llama-server that is never the bottleneck: one thread, epoll, canned answers.
//
// It imitates llama-server's behaviour on the wire: the head and each event are sends of their own,
// a chunked answer ends in "0\r\n" and "\r\n" and then the connection closes in spite of its
// Keep-Alive header, other answers keep it open, and the 100th on a connection says
// `Connection: close`.
//
//   stub_upstream [--unix PATH] [--tcp PORT] [--cpu N]
//   stub_upstream <arguments of llama-server> --host PATH.sock      (as a child of lswap)
//   stub_upstream <arguments of llama-server> --port N              (as a child of another router)
//
// A body with `"stream":true` is answered by `"max_tokens":N` events, `"stub_rate":R` of them a
// second (0: as fast as they are taken), the first one at once with `"stub_at_once":true`. Of a
// body larger than a megabyte only the beginning is looked at. POST /tokenize tells CLOCK_MONOTONIC
// nanoseconds of its ready line, of the request itself, and of the last time that a stream was left
// by its reader, with how many were.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MOST_REQUEST (1 << 20)
#define MOST_USES 100
#define EVENTS_PER_TURN 8
#define CORS "Server: llama.cpp\r\nAccess-Control-Allow-Origin: \r\n"
#define SSE_HEAD                                                                              \
    "HTTP/1.1 200 OK\r\n" CORS "Content-Type: text/event-stream\r\n"                          \
    "Transfer-Encoding: chunked\r\nKeep-Alive: timeout=5, max=100\r\n\r\n"
#define EVENT                                                                                 \
    "data: {\"choices\":[{\"finish_reason\":null,\"index\":0,\"delta\":{\"content\":\" word\"}}]," \
    "\"created\":1700000000,\"id\":\"chatcmpl-0123456789abcdefghijABCDEFGHIJ01\","             \
    "\"model\":\"stub\",\"object\":\"chat.completion.chunk\"}\n\n"
#define DONE "data: [DONE]\n\n"
#define ANSWER                                                                                \
    "{\"choices\":[{\"finish_reason\":\"stop\",\"index\":0,\"message\":{\"role\":\"assistant\"," \
    "\"content\":\"a few words\"}}],\"created\":1700000000,\"model\":\"stub\","                \
    "\"object\":\"chat.completion\",\"usage\":{\"completion_tokens\":3,\"prompt_tokens\":20,"   \
    "\"total_tokens\":23},\"id\":\"chatcmpl-0123456789abcdefghijABCDEFGHIJ01\"}"
#define PROPS                                                                                 \
    "{\"total_slots\":1024,\"default_generation_settings\":{\"n_ctx\":4096},\"build_info\":\"stub\"}"

enum kind { LISTENER, TIMER, CONTROL, CONNECTION };
enum phase { READING, STREAMING, CLOSED };

struct source {
    enum kind kind;
    int fd;
};

struct connection {
    struct source source; // first: epoll hands out pointers to it
    enum phase phase;
    char *in;
    size_t in_size, in_room;
    size_t to_skip, skipped; // of a large body: what is still to come, what is not kept
    int uses, last;
    const char *out; // what a send left over; answers are static or in `answer`
    size_t out_size;
    char answer[512];
    long events_left; // events to come; below zero: the steps of the end
    int64_t interval, due;
    int watches_out, timed;
    struct connection *earlier, *later; // the paced streams, by `due`
};

static int epoll_fd, timer_fd;
static struct connection *first_due, *last_due;
static struct connection *graveyard; // freed after the batch of events that may still name them
static int64_t ready_at, left_at;
static long left_count;
static char event_chunk[512], done_chunk[64];
static size_t event_chunk_size, done_chunk_size;

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void watch(struct source *source, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = source};
    if (epoll_ctl(epoll_fd, operation, source->fd, &event) != 0)
        fail("epoll_ctl");
}

// --- the queue of paced streams ----------------------------------------------------------------

static void dequeue(struct connection *c) {
    if (!c->timed)
        return;
    *(c->earlier ? &c->earlier->later : &first_due) = c->later;
    *(c->later ? &c->later->earlier : &last_due) = c->earlier;
    c->earlier = c->later = NULL;
    c->timed = 0;
}

static void enqueue(struct connection *c) {
    struct connection *before = last_due; // equal rates: nearly always the right place
    while (before && before->due > c->due)
        before = before->earlier;
    c->earlier = before;
    c->later = before ? before->later : first_due;
    *(c->earlier ? &c->earlier->later : &first_due) = c;
    *(c->later ? &c->later->earlier : &last_due) = c;
    c->timed = 1;
}

static void arm(void) {
    struct itimerspec when = {{0, 0}, {0, 0}};
    if (first_due) {
        when.it_value.tv_sec = first_due->due / 1000000000LL;
        when.it_value.tv_nsec = first_due->due % 1000000000LL;
    }
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

// --- sending -----------------------------------------------------------------------------------

static void bury(struct connection *c) {
    if (c->phase == CLOSED)
        return;
    dequeue(c);
    close(c->source.fd);
    free(c->in);
    c->phase = CLOSED;
    c->later = graveyard;
    graveyard = c;
}

// The other side is gone.
static void lose(struct connection *c) {
    if (c->phase == STREAMING) {
        left_at = now_ns();
        left_count++;
    }
    bury(c);
}

static void watch_out(struct connection *c, int on) {
    if (c->watches_out != on) {
        c->watches_out = on;
        watch(&c->source, EPOLLIN | (on ? EPOLLOUT : 0), EPOLL_CTL_MOD);
    }
}

// Send all of it, or remember the rest; returns whether the connection may send more at once.
static int send_piece(struct connection *c, const char *data, size_t size) {
    ssize_t sent = send(c->source.fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) {
        lose(c);
        return 0;
    }
    size_t taken = sent < 0 ? 0 : (size_t)sent;
    c->out = data + taken;
    c->out_size = size - taken;
    if (c->out_size)
        watch_out(c, 1);
    return c->out_size == 0;
}

// Send the next send of a stream; returns whether another may follow at once.
static int send_next(struct connection *c) {
    long step = c->events_left--;
    if (step > 0)
        return send_piece(c, event_chunk, event_chunk_size);
    if (step == 0)
        return send_piece(c, done_chunk, done_chunk_size);
    if (step == -1)
        return send_piece(c, "0\r\n", 3);
    if (step == -2 && send_piece(c, "\r\n", 2))
        bury(c);
    return 0;
}

static void send_end(struct connection *c) {
    while (c->phase == STREAMING && send_next(c))
        ;
}

static void on_due(void) {
    int64_t now = now_ns();
    while (first_due && first_due->due <= now) {
        struct connection *c = first_due;
        dequeue(c);
        if (c->out_size == 0 && send_next(c) && c->events_left <= 0)
            send_end(c);
        if (c->phase == STREAMING && c->events_left > 0) {
            c->due += c->interval;
            enqueue(c);
        }
    }
    arm();
}

static void answer_requests(struct connection *c);

static void on_writable(struct connection *c) {
    if (c->out_size && !send_piece(c, c->out, c->out_size))
        return;
    if (c->phase == STREAMING && c->interval == 0) {
        for (int i = 0; i < EVENTS_PER_TURN && c->phase == STREAMING; i++)
            if (!send_next(c))
                return;
        return;
    }
    if (c->phase == STREAMING && c->events_left <= 0) {
        send_end(c);
        return;
    }
    watch_out(c, 0);
    if (c->phase == READING)
        answer_requests(c);
}

// --- requests ----------------------------------------------------------------------------------

static long number_after(const char *text, const char *key, long otherwise) {
    const char *found = strstr(text, key);
    return found ? strtol(found + strlen(key), NULL, 10) : otherwise;
}

static void start_stream(struct connection *c, const char *body) {
    long rate = number_after(body, "\"stub_rate\":", 0);
    c->phase = STREAMING;
    c->events_left = number_after(body, "\"max_tokens\":", 16);
    c->interval = rate > 0 ? 1000000000LL / rate : 0;
    if (!send_piece(c, SSE_HEAD, sizeof SSE_HEAD - 1))
        return;
    if (c->interval == 0) {
        watch_out(c, 1);
        return;
    }
    // Phases of their own, as generations have; rand() without a seed is the same in every run.
    c->due = now_ns();
    if (!strstr(body, "\"stub_at_once\":true"))
        c->due += (int64_t)((double)rand() / RAND_MAX * (double)c->interval);
    enqueue(c);
    arm();
}

static void answer_json(struct connection *c, const char *body) {
    char head[320];
    size_t size = strlen(body);
    int written = snprintf(head, sizeof head,
                           "HTTP/1.1 200 OK\r\n" CORS
                           "Content-Type: application/json; charset=utf-8\r\n"
                           "Content-Length: %zu\r\n%sKeep-Alive: timeout=5, max=100\r\n\r\n",
                           size, c->last ? "Connection: close\r\n" : "");
    if (send(c->source.fd, head, (size_t)written, MSG_NOSIGNAL) != written) {
        bury(c);
        return;
    }
    if (send_piece(c, body, size) && c->last)
        bury(c);
}

static void answer_times(struct connection *c) {
    snprintf(c->answer, sizeof c->answer,
             "{\"tokens\":[1,2,3],\"ready_ns\":%lld,\"left\":%ld,\"left_ns\":%lld,\"asked_ns\":%lld}",
             (long long)ready_at, left_count, (long long)left_at, (long long)now_ns());
    answer_json(c, c->answer);
}

static void answer(struct connection *c, char *head, const char *body) {
    c->last = ++c->uses >= MOST_USES || strcasestr(head, "\r\nconnection: close") != NULL;
    if (strstr(body, "\"stream\":true"))
        start_stream(c, body);
    else if (strncmp(head, "POST /tokenize", 14) == 0)
        answer_times(c);
    else if (strncmp(head, "GET /", 5) == 0)
        answer_json(c, PROPS);
    else
        answer_json(c, ANSWER);
}

static void answer_requests(struct connection *c) {
    while (c->phase == READING && c->out_size == 0 && c->in_size) {
        c->in[c->in_size] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end)
            return;
        *end = 0;
        char *length = strcasestr(c->in, "\r\ncontent-length:");
        size_t body = length ? strtoul(length + 17, NULL, 10) : 0;
        size_t whole = (size_t)(end + 4 - c->in) + body;
        if (c->in_size + c->skipped < whole) {
            *end = '\r';
            if (whole > MOST_REQUEST)
                c->to_skip = c->skipped = whole - c->in_size;
            return;
        }
        size_t held = whole - c->skipped;
        char kept = c->in[held];
        c->in[held] = 0;
        answer(c, c->in, end + 4);
        if (c->phase == CLOSED)
            return;
        c->in[held] = kept;
        memmove(c->in, c->in + held, c->in_size - held);
        c->in_size -= held;
        c->skipped = 0;
    }
}

static void skip(struct connection *c) {
    static char nobody[1 << 16];
    size_t most = c->to_skip < sizeof nobody ? c->to_skip : sizeof nobody;
    ssize_t got = recv(c->source.fd, nobody, most, 0);
    if (got > 0) {
        c->to_skip -= (size_t)got;
        if (!c->to_skip)
            answer_requests(c);
    } else if (got == 0 || errno != EAGAIN) {
        bury(c);
    }
}

static void on_readable(struct connection *c) {
    if (c->to_skip) {
        skip(c);
        return;
    }
    if (c->in_size + 1 >= c->in_room) {
        c->in_room = c->in_room ? 2 * c->in_room : 4096;
        c->in = c->in_room > MOST_REQUEST ? NULL : realloc(c->in, c->in_room);
        if (!c->in)
            fail("a request too large");
    }
    ssize_t got = recv(c->source.fd, c->in + c->in_size, c->in_room - c->in_size - 1, 0);
    if (got > 0) {
        c->in_size += (size_t)got;
        answer_requests(c);
    } else if (got == 0 || errno != EAGAIN) {
        lose(c);
    }
}

// --- the process -------------------------------------------------------------------------------

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *c = calloc(1, sizeof *c);
        if (!c)
            fail("calloc");
        c->source.kind = CONNECTION;
        c->source.fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        watch(&c->source, EPOLLIN, EPOLL_CTL_ADD);
    }
}

static void add_source(enum kind kind, int fd) {
    struct source *source = calloc(1, sizeof *source);
    if (!source)
        fail("calloc");
    source->kind = kind;
    source->fd = fd;
    watch(source, EPOLLIN, EPOLL_CTL_ADD);
}

static void listen_on(int family, const struct sockaddr *address, socklen_t size) {
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, address, size) != 0 || listen(fd, 1024) != 0)
        fail("listen");
    add_source(LISTENER, fd);
}

static void listen_unix(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    unlink(path);
    listen_on(AF_UNIX, (struct sockaddr *)&address, sizeof address);
}

static void listen_tcp(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listen_on(AF_INET, (struct sockaddr *)&address, sizeof address);
}

static void pin(const char *cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(atoi(cpu), &set);
    sched_setaffinity(0, sizeof set, &set);
}

static int has_control = 1;

static void read_arguments(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("version: 11434 (0000000)");
        exit(0);
    }
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        // What lswap looks for in the help of a llama-server; descriptions start in column 40.
        printf("%-40sfile to load\n", "-m,    --model FNAME");
        printf("%-40sport to listen on\n", "--port PORT");
        printf("%-40san address, or a path that ends with .sock\n", "--host HOST");
        exit(0);
    }
    for (int i = 1; i + 1 < argc; i++) {
        if (strcmp(argv[i], "--port") == 0)
            has_control = 0; // this router has its own ways to end it
        if (strcmp(argv[i], "--cpu") == 0)
            pin(argv[i + 1]);
        else if (strcmp(argv[i], "--tcp") == 0 || strcmp(argv[i], "--port") == 0)
            listen_tcp(atoi(argv[i + 1]));
        else if (strcmp(argv[i], "--unix") == 0 ||
                 (strcmp(argv[i], "--host") == 0 && argv[i + 1][0] == '/'))
            listen_unix(argv[i + 1]);
    }
}

// Standalone, the end of stdin ends it as well: it can't outlive what started it.
static void read_control(void) {
    char text[256];
    ssize_t got = read(0, text, sizeof text - 1);
    text[got > 0 ? got : 0] = 0;
    if (got <= 0 || strstr(text, "cmd_router_to_child:exit"))
        exit(0);
}

static void prepare_chunks(void) {
    event_chunk_size = (size_t)sprintf(event_chunk, "%zx\r\n%s\r\n", sizeof EVENT - 1, EVENT);
    done_chunk_size = (size_t)sprintf(done_chunk, "%zx\r\n%s\r\n", sizeof DONE - 1, DONE);
}

static void dispatch(struct epoll_event *event) {
    struct source *source = event->data.ptr;
    struct connection *c = event->data.ptr;
    uint64_t ticks;
    switch (source->kind) {
    case LISTENER:
        accept_all(source->fd);
        break;
    case CONTROL:
        read_control();
        break;
    case TIMER:
        if (read(timer_fd, &ticks, sizeof ticks) > 0)
            on_due();
        break;
    case CONNECTION:
        if (c->phase != CLOSED && event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            on_readable(c);
        if (c->phase != CLOSED && event->events & EPOLLOUT)
            on_writable(c);
    }
}

int main(int argc, char **argv) {
    struct epoll_event events[256];
    signal(SIGPIPE, SIG_IGN);
    if (getenv("STUB_CPU"))
        pin(getenv("STUB_CPU"));
    prepare_chunks();
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    read_arguments(argc, argv);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    add_source(TIMER, timer_fd);
    if (has_control)
        add_source(CONTROL, 0);
    ready_at = now_ns();
    puts("cmd_child_to_router:state:{\"state\":\"ready\",\"payload\":{\"id\":\"stub\"}}");
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll_fd, events, 256, -1);
        for (int i = 0; i < count; i++)
            dispatch(&events[i]);
        while (graveyard) {
            struct connection *c = graveyard;
            graveyard = c->later;
            free(c);
        }
    }
}
