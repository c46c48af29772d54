/*
 * The benchmark's load: publishes quotes to Redis and receives them over many WebSocket clients.
 *
 *     load HOST-PORT REDIS-SOCKET json|bare plain|tls      (load.py builds and starts it)
 *
 * One thread, one epoll. Every publish is numbered, and the payload carries the number. The clients
 * that have to get each number are known, so every delivery is checked: it was due, it came once, and
 * it followed the client's previous quote of that symbol. Latency is measured for each delivery, from
 * just before the publish to the return of the read that received it.
 *
 * Clients that are stalled, slow or paced may miss quotes that a newer one of the symbol replaces. For
 * them it is checked that no quote comes that was not due, or after a newer one; `settle` checks that
 * all end with the newest. Figures of stalled and slow clients are those of `settle` only.
 *
 * Commands, one per line, each answered by one line of JSON:
 *
 *     connect CLIENTS SYMBOLS WATCHED [STALLED SLOW THEIRS INTERVAL SPREAD]
 *                                                each client subscribes to WATCHED of SYMBOLS;
 *                                                the last STALLED + SLOW of them subscribe THEIRS
 *                                                instead, and then do not read, or 1 KiB a second;
 *                                                INTERVAL paces everyone (milliseconds); with
 *                                                SPREAD 1 each has its own loopback address
 *     closed SECONDS QUOTES ENOUGH               publish with at most QUOTES in flight, refilled
 *                                                at half; for at least ENOUGH quotes
 *     open SECONDS RATE                          publish RATE quotes a second, whatever happens
 *     settle                                     everyone reads again, until each client has the
 *                                                newest quote of each of its symbols
 *     disconnect [keep]                          disconnect; keep TLS sessions for the next connect
 *     quit
 *
 * Of RFC 6455 it supports what servers in this benchmark send: text, fragmented or not, without
 * extensions. Client frames are masked with zeros.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_CLIENTS = 20000,
    MAX_SYMBOLS = 8192,
    RING = 1 << 16,           /* quotes in flight, at most */
    AT_ONCE = 64,             /* handshakes in flight */
    READ_SIZE = 256 * 1024,
    CARRY = 192,              /* bytes kept of a read that ended within a head or a number */
    PAYLOAD = 120,
    NUMBER_AT = 18,           /* the '@' in TEMPLATE */
    NUMBER_DIGITS = 10,
    TIME_AT = NUMBER_AT + 1 + NUMBER_DIGITS + 7,
    TIME_DIGITS = 19,
    MARK_SIZE = TIME_AT + TIME_DIGITS - NUMBER_AT,
    BUCKETS = 64 * 48,
    SMALL_BUFFER = 16384,     /* SO_RCVBUF of stalled and slow clients */
    SEGMENT = 1448,           /* their TCP_MAXSEG: a segment of loopback's size fills such a buffer */
    SIP = 1024,               /* bytes that a slow client reads in a second */
};
/* Numbers have a fixed width: they begin with a 1. No '@' but the one before the number. */
static const char TEMPLATE[] =
    "{\"s\":\"S0000\",\"q\":\"@1000000000\",\"t\":\"1000000000000000000\","
    "\"bid\":189.2500,\"ask\":189.2700,\"last\":189.2600,\"size\":     1200}";
static const uint64_t NUMBER_BASE = 1000000000ull;
static const uint64_t TIME_BASE = 1000000000000000000ull;
static const double PATIENCE = 5.0; /* seconds without any delivery after which quotes are lost */

enum state { CLOSED, CONNECTING, SECURING, UPGRADING, SUBSCRIBING, READY, STALLED, SLOW };

struct client {
    int fd;
    enum state state;
    SSL *ssl;
    SSL_SESSION *session;
    uint64_t left;            /* bytes of the current frame's payload still to come */
    uint8_t opcode;
    uint16_t carried;
    uint8_t carry[CARRY];
    char *opening;            /* until READY: all that came */
    size_t opening_size;
    uint32_t *last;           /* by symbol: the number of the last quote, NOT_WATCHED, or 0 */
    enum state role;          /* READY for one that reads as it should, or STALLED, or SLOW */
    bool loose;               /* may miss quotes where newer ones come instead */
    bool quoted;              /* the current frame has had a quote */
    uint32_t stale;           /* while settling: symbols whose newest quote has not come */
    uint32_t frames;          /* with quotes, so far */
    uint32_t merged_at;       /* the first of them in which a quote was missing before another */
    uint32_t current_at;      /* the one that brought the last of the newest */
    uint64_t taken, taken_before; /* bytes of frames with the current one, and without */
    uint64_t swallowed;       /* bytes before the last merged frame */
};
static const uint32_t NOT_WATCHED = UINT32_MAX;

static struct client clients[MAX_CLIENTS];
static int client_count, symbol_count, ready_count, failed_count, resumed_count;
static int slow_count, pace, spread; /* slow clients are the last ones */
static uint32_t first_number; /* of the first quote since the clients connected */
static int stale_clients;
static uint32_t *last_numbers;
static uint32_t audience[MAX_SYMBOLS], newest[MAX_SYMBOLS];

static uint32_t head = 1, tail = 1; /* numbers published and numbers that reached everyone */
static uint32_t ring_left[RING], ring_before[RING];
static uint16_t ring_symbol[RING];

static struct {
    uint64_t delivered, misordered, unexpected, frames, bytes, reads, redis_errors, held;
    uint64_t merged, late;
    uint64_t histogram[BUCKETS];
} seen;

static int poll_fd, redis_fd, server_port;
static bool json_style, with_tls;
static SSL_CTX *tls_context;
static char tls_description[128];
static uint8_t read_space[CARRY + READ_SIZE];
static uint8_t *redis_out;
static size_t redis_out_size, redis_out_done, redis_out_room;
static uint32_t next_symbol;

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000ull + (uint64_t)time.tv_nsec;
}

static double own_cpu(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static uint32_t random_below(uint32_t bound) { /* the same sequence in every run */
    static uint64_t state = 0x9e3779b97f4a7c15ull;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 32) % bound);
}

/* ---- latency: 64 buckets for each power of two -------------------------------------------- */

static unsigned bucket_of(uint64_t value) {
    if (value < 128)
        return (unsigned)value;
    unsigned shift = 57u - (unsigned)__builtin_clzll(value);
    unsigned bucket = shift * 64 + (unsigned)(value >> shift);
    return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

static double bucket_middle(unsigned bucket) {
    if (bucket < 128)
        return bucket;
    unsigned shift = bucket / 64 - 1;
    return ((double)(bucket - shift * 64) + 0.5) * (double)(1ull << shift);
}

static double percentile_us(double share) {
    uint64_t wanted = (uint64_t)((double)seen.delivered * share), sum = 0;
    for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
        sum += seen.histogram[bucket];
        if (sum > wanted)
            return bucket_middle(bucket) / 1000;
    }
    return 0;
}

/* ---- Redis ----------------------------------------------------------------------------------- */

static void redis_connect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    redis_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (redis_fd < 0 || connect(redis_fd, (struct sockaddr *)&address, sizeof address))
        die("can't connect to %s: %s", path, strerror(errno));
    fcntl(redis_fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &redis_fd};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, redis_fd, &event);
}

static void redis_flush(void) {
    while (redis_out_done < redis_out_size) {
        ssize_t sent = send(redis_fd, redis_out + redis_out_done,
                            redis_out_size - redis_out_done, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            die("Redis hung up: %s", strerror(errno));
        if (sent < 0) {
            struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = &redis_fd};
            epoll_ctl(poll_fd, EPOLL_CTL_MOD, redis_fd, &event);
            return;
        }
        redis_out_done += (size_t)sent;
    }
    redis_out_size = redis_out_done = 0;
}

static void redis_ready(uint32_t events) {
    if (events & EPOLLOUT) {
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = &redis_fd};
        epoll_ctl(poll_fd, EPOLL_CTL_MOD, redis_fd, &event);
        redis_flush();
    }
    if (events & ~(uint32_t)EPOLLOUT) {
        ssize_t size = recv(redis_fd, read_space, READ_SIZE, 0);
        if (size == 0)
            die("Redis hung up");
        for (ssize_t at = 0; at < size; at++) /* replies are counts: a minus begins an error */
            seen.redis_errors += read_space[at] == '-';
    }
}

static void put_digits(char *at, uint64_t value, int digits) {
    for (char *digit = at + digits; digit-- > at; value /= 10)
        *digit = (char)('0' + value % 10);
}

static void publish(void) {
    uint32_t symbol = next_symbol;
    next_symbol = (next_symbol + 1) % (uint32_t)symbol_count;
    static const char before[] = "*3\r\n$7\r\nPUBLISH\r\n$11\r\nquote.S";
    static const char between[] = "\r\n$120\r\n";
    char command[256];
    memcpy(command, before, sizeof before - 1);
    put_digits(command + sizeof before - 1, symbol, 4);
    memcpy(command + sizeof before + 3, between, sizeof between - 1);
    char *payload = command + sizeof before + 3 + sizeof between - 1;
    memcpy(payload, TEMPLATE, PAYLOAD);
    put_digits(payload + 7, symbol, 4);
    put_digits(payload + NUMBER_AT + 1, NUMBER_BASE + head, NUMBER_DIGITS);
    put_digits(payload + TIME_AT, TIME_BASE + now_ns(), TIME_DIGITS);
    memcpy(payload + PAYLOAD, "\r\n", 2);
    size_t size = (size_t)(payload - command) + PAYLOAD + 2;
    if (redis_out_size + size > redis_out_room) {
        redis_out_room = redis_out_room * 2 + 65536;
        redis_out = realloc(redis_out, redis_out_room);
    }
    memcpy(redis_out + redis_out_size, command, size);
    redis_out_size += size;
    uint32_t slot = head % RING;
    ring_left[slot] = audience[symbol];
    ring_symbol[slot] = (uint16_t)symbol;
    ring_before[slot] = newest[symbol];
    newest[symbol] = head++;
}

static void advance(void) {
    while (tail != head && ring_left[tail % RING] == 0)
        tail++;
}

/* ---- what a client receives ------------------------------------------------------------------ */

static uint64_t get_digits(const uint8_t *at, int digits) {
    uint64_t value = 0;
    for (int i = 0; i < digits; i++)
        value = value * 10 + (uint64_t)(at[i] - '0');
    return value;
}

/* To a client that may miss quotes. Symbols take turns: the number tells which one it is. */
static void delivered_loosely(struct client *client, uint32_t number, uint64_t age) {
    if (number - first_number >= head - first_number) {
        seen.unexpected++;
        return;
    }
    uint32_t symbol = (number - first_number) % (uint32_t)symbol_count;
    uint32_t *last = &client->last[symbol];
    if (*last == NOT_WATCHED) {
        seen.unexpected++;
        return;
    }
    uint32_t due = *last ? *last + (uint32_t)symbol_count : first_number + symbol;
    if (!client->quoted) {
        client->quoted = true;
        client->frames++;
    }
    if (number < due) {
        seen.misordered++;
    } else if (number > due) {
        seen.merged += (number - due) / (uint32_t)symbol_count;
        if (!client->merged_at)
            client->merged_at = client->frames;
        client->swallowed = client->taken_before;
    }
    *last = number;
    if (client->stale && number >= due && number == newest[symbol] && --client->stale == 0) {
        client->current_at = client->frames;
        stale_clients--;
    }
    if (client->role == READY) {
        seen.delivered++;
        seen.histogram[bucket_of(age)]++;
    } else {
        seen.late++;
    }
}

static void delivered(struct client *client, const uint8_t *mark, uint64_t now) {
    uint32_t number = (uint32_t)(get_digits(mark + 1, NUMBER_DIGITS) - NUMBER_BASE);
    uint64_t sent = get_digits(mark + TIME_AT - NUMBER_AT, TIME_DIGITS) - TIME_BASE;
    if (client->loose) {
        delivered_loosely(client, number, now - sent);
        return;
    }
    uint32_t slot = number % RING;
    if (number - tail >= head - tail || ring_left[slot] == 0) {
        seen.unexpected++;
        return;
    }
    uint32_t *last = &client->last[ring_symbol[slot]];
    if (*last == NOT_WATCHED) {
        seen.unexpected++;
        return;
    }
    seen.misordered += *last != ring_before[slot];
    *last = number;
    ring_left[slot]--;
    seen.delivered++;
    seen.histogram[bucket_of(now - sent)]++;
}

/* Counts the quotes in a part of a text; returns how many bytes were processed. */
static size_t scan(struct client *client, const uint8_t *from, size_t size, uint64_t now) {
    const uint8_t *at = from, *end = from + size;
    while ((at = memchr(at, '@', (size_t)(end - at))) != NULL) {
        if (end - at < MARK_SIZE)
            return (size_t)(at - from);
        delivered(client, at, now);
        at += MARK_SIZE;
    }
    return size;
}

static bool client_write(struct client *client, const void *data, size_t size) {
    /* Requests are small and sockets new: they always take it whole. */
    if (client->ssl)
        return SSL_write(client->ssl, data, (int)size) == (int)size;
    return send(client->fd, data, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool send_frame(struct client *client, uint8_t opcode, const char *text, size_t size) {
    uint8_t *frame = malloc(size + 14);
    size_t at = 0;
    frame[at++] = 0x80 | opcode;
    if (size < 126) {
        frame[at++] = 0x80 | (uint8_t)size;
    } else {
        frame[at++] = 0x80 | 126;
        frame[at++] = (uint8_t)(size >> 8);
        frame[at++] = (uint8_t)size;
    }
    memset(frame + at, 0, 4);
    memcpy(frame + at + 4, text, size);
    bool sent = client_write(client, frame, at + 4 + size);
    free(frame);
    return sent;
}

/* Size of the frame head at `at`, 0 if it is incomplete; sets the opcode and the payload's size. */
static size_t frame_head(const uint8_t *at, size_t size, uint8_t *opcode, uint64_t *payload) {
    if (size < 2)
        return 0;
    size_t head_size = at[1] == 127 ? 10 : at[1] == 126 ? 4 : 2;
    if (size < head_size)
        return 0;
    *opcode = at[0] & 15;
    *payload = at[1];
    if (head_size > 2) {
        *payload = 0;
        for (size_t i = 2; i < head_size; i++)
            *payload = *payload << 8 | at[i];
    }
    return head_size;
}

static void drop(struct client *client);

/* Processes `size` bytes; the CARRY bytes before `data` may be overwritten. */
static void stream(struct client *client, uint8_t *data, size_t size, uint64_t now) {
    data -= client->carried;
    memcpy(data, client->carry, client->carried);
    size += client->carried;
    client->carried = 0;
    while (size > 0) {
        if (client->left == 0) {
            size_t head_size = frame_head(data, size, &client->opcode, &client->left);
            if (head_size == 0)
                break;
            data += head_size;
            size -= head_size;
            seen.frames += client->opcode < 8;
            client->quoted = false;
            client->taken_before = client->taken;
            client->taken += head_size + client->left;
            if (client->opcode == 8) {
                drop(client);
                return;
            }
            if (client->opcode == 9 && client->left == 0)
                send_frame(client, 10, "", 0);
            continue;
        }
        size_t here = size < client->left ? size : client->left;
        size_t done = here;
        if (client->opcode < 8) {
            done = scan(client, data, here, now);
            if (done < here && here == client->left) {
                seen.unexpected++; /* a text that ends inside a number */
                done = here;
            }
        } else if (here < client->left) {
            done = 0;
        } else if (client->opcode == 9) {
            send_frame(client, 10, (char *)data, here);
        }
        data += done;
        size -= done;
        client->left -= done;
        if (done < here)
            break;
    }
    if (size > CARRY)
        die("%zu bytes to carry", size);
    memcpy(client->carry, data, size);
    client->carried = (uint16_t)size;
}

/* ---- a client's life ------------------------------------------------------------------------- */

static void drop(struct client *client) {
    if (client->state == CLOSED)
        return;
    if (client->state < READY)
        failed_count++;
    if (client->ssl) {
        SSL_shutdown(client->ssl); /* quiet: the session may be resumed */
        SSL_free(client->ssl);
        client->ssl = NULL;
    }
    close(client->fd);
    free(client->opening);
    client->opening = NULL;
    client->state = CLOSED;
}

static void watch(struct client *client, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = client};
    epoll_ctl(poll_fd, operation, client->fd, &event);
}

static void open_client(struct client *client) {
    client->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1, buffer = SMALL_BUFFER, segment = SEGMENT;
    setsockopt(client->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (client->role != READY) {
        setsockopt(client->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
        setsockopt(client->fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    }
    if (spread) { /* 127.1.0.0 and up */
        struct sockaddr_in own = {.sin_family = AF_INET};
        own.sin_addr.s_addr = htonl(0x7f010000u + (uint32_t)(client - clients));
        if (bind(client->fd, (struct sockaddr *)&own, sizeof own))
            die("can't bind: %s", strerror(errno));
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (client->fd < 0
        || (connect(client->fd, (struct sockaddr *)&address, sizeof address)
            && errno != EINPROGRESS))
        die("can't connect: %s", strerror(errno));
    client->state = CONNECTING;
    client->left = client->carried = 0;
    client->opening_size = 0;
    client->stale = client->frames = client->merged_at = client->current_at = 0;
    client->taken = client->taken_before = client->swallowed = 0;
    watch(client, EPOLLOUT, EPOLL_CTL_ADD);
}

static void send_upgrade(struct client *client) {
    static char request[8192 + 512];
    static int size;
    if (!size) {
        const char *token = getenv("LOAD_TOKEN");
        size = snprintf(
            request, sizeof request,
            "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s%s\r\n",
            token ? "Authorization: Bearer " : "", token ? token : "");
        if (token)
            size += snprintf(request + size, sizeof request - (size_t)size, "\r\n");
        if (size >= (int)sizeof request)
            die("LOAD_TOKEN is too long");
    }
    client->state = UPGRADING;
    watch(client, EPOLLIN, EPOLL_CTL_MOD);
    if (!client_write(client, request, (size_t)size))
        drop(client);
}

static void secure(struct client *client) {
    ERR_clear_error();
    int result = SSL_connect(client->ssl);
    if (result == 1) {
        resumed_count += SSL_session_reused(client->ssl);
        if (!tls_description[0])
            snprintf(tls_description, sizeof tls_description, "%s %s",
                     SSL_get_version(client->ssl), SSL_get_cipher(client->ssl));
        send_upgrade(client);
        return;
    }
    int error = SSL_get_error(client->ssl, result);
    if (error == SSL_ERROR_WANT_READ)
        watch(client, EPOLLIN, EPOLL_CTL_MOD);
    else if (error == SSL_ERROR_WANT_WRITE)
        watch(client, EPOLLOUT, EPOLL_CTL_MOD);
    else
        drop(client);
}

static void send_subscribe(struct client *client) {
    char *text = malloc((size_t)symbol_count * 8 + 96);
    const char *quote = json_style ? "\"" : "";
    size_t size = json_style
        ? (size_t)sprintf(text, "{\"op\":\"subscribe\",\"snapshot\":false,") : 0;
    if (pace)
        size += (size_t)sprintf(text + size, "\"interval\":%d,", pace);
    if (json_style)
        size += (size_t)sprintf(text + size, "\"symbols\":[");
    for (int symbol = 0; symbol < symbol_count; symbol++)
        if (client->last[symbol] != NOT_WATCHED)
            size += (size_t)sprintf(text + size, "%sS%04d%s,", quote, symbol, quote);
    size--;
    if (json_style)
        size += (size_t)sprintf(text + size, "]}");
    client->state = SUBSCRIBING;
    if (!send_frame(client, 1, text, size))
        drop(client);
    free(text);
}

/* Everything before READY: the response's head, then messages until one says "subscribed". */
static void opening(struct client *client, const uint8_t *data, size_t size, uint64_t now) {
    client->opening = realloc(client->opening, client->opening_size + size + 1);
    memcpy(client->opening + client->opening_size, data, size);
    client->opening_size += size;
    client->opening[client->opening_size] = 0;
    size_t done = 0;
    if (client->state == UPGRADING) {
        char *end = memmem(client->opening, client->opening_size, "\r\n\r\n", 4);
        if (!end)
            return;
        if (strncmp(client->opening, "HTTP/1.1 101", 12)) {
            drop(client);
            return;
        }
        done = (size_t)(end + 4 - client->opening);
        send_subscribe(client);
    }
    while (client->state == SUBSCRIBING) {
        uint8_t opcode;
        uint64_t payload;
        uint8_t *at = (uint8_t *)client->opening + done;
        size_t head_size = frame_head(at, client->opening_size - done, &opcode, &payload);
        if (head_size == 0 || client->opening_size - done - head_size < payload)
            break;
        done += head_size + payload;
        if (opcode == 1 && memmem(at + head_size, payload, "subscribed", 10)) {
            client->state = READY;
            ready_count++;
        }
    }
    if (client->state == CLOSED)
        return;
    client->opening_size -= done;
    memmove(client->opening, client->opening + done, client->opening_size);
    if (client->state == READY) {
        uint8_t *rest = malloc(client->opening_size + CARRY);
        memcpy(rest + CARRY, client->opening, client->opening_size);
        stream(client, rest + CARRY, client->opening_size, now);
        free(rest);
        free(client->opening);
        client->opening = NULL;
    }
}

static void received(struct client *client, uint8_t *data, size_t size, uint64_t now) {
    seen.bytes += size;
    if (client->state >= READY)
        stream(client, data, size, now);
    else
        opening(client, data, size, now);
}

static void readable(struct client *client, size_t most) {
    uint8_t *space = read_space + CARRY;
    if (!client->ssl) {
        ssize_t size = recv(client->fd, space, most, 0);
        seen.reads++;
        if (size > 0)
            received(client, space, (size_t)size, now_ns());
        else if (size == 0 || errno != EAGAIN)
            drop(client);
        return;
    }
    do {
        ERR_clear_error();
        int size = SSL_read(client->ssl, space, (int)most);
        seen.reads++;
        if (size > 0)
            received(client, space, (size_t)size, now_ns());
        else if (SSL_get_error(client->ssl, size) == SSL_ERROR_WANT_READ)
            return;
        else
            drop(client);
    } while (most == READ_SIZE && client->state != CLOSED && SSL_has_pending(client->ssl));
}

static void client_ready(struct client *client) {
    switch (client->state) {
    case CONNECTING: {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            drop(client);
        } else if (with_tls) {
            client->ssl = SSL_new(tls_context);
            SSL_set_app_data(client->ssl, client);
            SSL_set_fd(client->ssl, client->fd);
            SSL_set_read_ahead(client->ssl, client->role == READY);
            if (client->session)
                SSL_set_session(client->ssl, client->session);
            client->state = SECURING;
            secure(client);
        } else {
            send_upgrade(client);
        }
        break;
    }
    case SECURING:
        secure(client);
        break;
    case UPGRADING:
    case SUBSCRIBING:
    case READY:
        readable(client, READ_SIZE);
        break;
    default:
        break;
    }
}

/* Lets each slow client read a little once a second. */
static void sip(uint64_t now) {
    static uint64_t due;
    static int next;
    if (slow_count == 0)
        return;
    if (now - due > 1000000000ull)
        due = now;
    for (; due <= now; due += 1000000000ull / (uint64_t)slow_count) {
        next = (next + 1) % slow_count;
        struct client *client = &clients[client_count - slow_count + next];
        if (client->state == SLOW)
            readable(client, SIP);
    }
}

/* Serves the clients that are ready; returns how many there were. */
static int turn(int timeout_ms, int timer_fd) {
    struct epoll_event events[64];
    int count = epoll_wait(poll_fd, events, 64, timeout_ms), served = 0;
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == &redis_fd) {
            redis_ready(events[i].events);
        } else if (events[i].data.ptr == &timer_fd || events[i].data.ptr == NULL) {
            uint64_t ticks;
            if (read(timer_fd, &ticks, sizeof ticks) < 0)
                continue;
        } else {
            client_ready(events[i].data.ptr);
            served++;
        }
    }
    return served;
}

static int new_session(SSL *ssl, SSL_SESSION *session) {
    struct client *client = SSL_get_app_data(ssl);
    SSL_SESSION_free(client->session);
    client->session = session;
    return 1; /* kept */
}

/* ---- commands -------------------------------------------------------------------------------- */

struct crowd {
    int count, symbols, watched, stalled, slow, theirs, interval, spread;
};

static void choose_symbols(int at, int watched, bool counts) {
    struct client *client = &clients[at];
    for (int chosen = 0; chosen < watched;) {
        uint32_t symbol = watched == symbol_count ? (uint32_t)chosen
            : watched == 1 ? (uint32_t)(at % symbol_count) : random_below((uint32_t)symbol_count);
        if (client->last[symbol] == NOT_WATCHED) {
            client->last[symbol] = 0;
            audience[symbol] += counts;
            chosen++;
        }
    }
}

static void command_connect(struct crowd crowd) {
    int count = crowd.count, bad = crowd.stalled + crowd.slow;
    if (count > MAX_CLIENTS || crowd.symbols > MAX_SYMBOLS || crowd.watched > crowd.symbols
        || crowd.theirs > crowd.symbols || bad > count || client_count)
        die("bad connect");
    client_count = count;
    slow_count = crowd.slow;
    symbol_count = crowd.symbols;
    pace = crowd.interval;
    spread = crowd.spread;
    next_symbol = 0;
    first_number = head;
    ready_count = failed_count = resumed_count = 0;
    size_t cells = (size_t)count * (size_t)symbol_count;
    last_numbers = malloc(cells * sizeof *last_numbers);
    memset(last_numbers, 0xff, cells * sizeof *last_numbers);
    memset(audience, 0, sizeof audience);
    memset(newest, 0, sizeof newest);
    for (int i = 0; i < count; i++) {
        struct client *client = &clients[i];
        client->last = last_numbers + (size_t)i * (size_t)symbol_count;
        client->role = i < count - bad ? READY : i < count - crowd.slow ? STALLED : SLOW;
        client->loose = pace || client->role != READY;
        choose_symbols(i, client->role == READY ? crowd.watched : crowd.theirs, !client->loose);
    }
    double cpu = own_cpu();
    uint64_t began = now_ns(), progress = began;
    int opened = 0, before = 0;
    while (ready_count + failed_count < count) {
        while (opened < count && opened - ready_count - failed_count < AT_ONCE) {
            open_client(&clients[opened++]);
        }
        turn(100, -1);
        if (ready_count != before) {
            before = ready_count;
            progress = now_ns();
        } else if ((double)(now_ns() - progress) > PATIENCE * 1e9) {
            break;
        }
    }
    for (int i = count - bad; i < count; i++) {
        if (clients[i].state == READY) {
            epoll_ctl(poll_fd, EPOLL_CTL_DEL, clients[i].fd, NULL);
            clients[i].state = clients[i].role;
        }
    }
    printf("{\"ready\": %d, \"failed\": %d, \"resumed\": %d, \"seconds\": %.6f, "
           "\"load_cpu\": %.6f, \"tls\": \"%s\"}\n",
           ready_count, failed_count, resumed_count, (double)(now_ns() - began) / 1e9,
           own_cpu() - cpu, tls_description);
}

static void command_disconnect(bool keep) {
    for (int i = 0; i < client_count; i++) {
        drop(&clients[i]);
        if (!keep) {
            SSL_SESSION_free(clients[i].session);
            clients[i].session = NULL;
        }
    }
    client_count = 0;
    free(last_numbers);
    last_numbers = NULL;
    tail = head;
    printf("{}\n");
}

static int gone_clients(void) {
    int gone = 0;
    for (int i = 0; i < client_count; i++)
        gone += clients[i].state == CLOSED;
    return gone;
}

/* The number of symbols of which the client does not have the newest quote. */
static uint32_t stale_symbols(const struct client *client) {
    uint32_t stale = 0;
    for (int symbol = 0; symbol < symbol_count; symbol++)
        stale += client->last[symbol] != NOT_WATCHED && client->last[symbol] != newest[symbol];
    return stale;
}

static void command_settle(void) {
    memset(&seen, 0, sizeof seen);
    uint64_t began = now_ns(), progress = began, before = 0;
    stale_clients = 0;
    for (int i = 0; i < client_count; i++) {
        clients[i].stale = clients[i].loose ? stale_symbols(&clients[i]) : 0;
        stale_clients += clients[i].stale > 0;
    }
    int were_stale = stale_clients;
    for (int i = 0; i < client_count; i++) {
        if (clients[i].state == STALLED || clients[i].state == SLOW) {
            clients[i].state = READY;
            watch(&clients[i], EPOLLIN, EPOLL_CTL_ADD);
            readable(&clients[i], READ_SIZE); /* OpenSSL may hold some already */
        }
    }
    uint64_t now = now_ns();
    while (stale_clients && (double)(now - progress) <= PATIENCE * 1e9) {
        turn(50, -1);
        now = now_ns();
        if (seen.delivered + seen.late != before) {
            before = seen.delivered + seen.late;
            progress = now;
        }
    }
    uint32_t caught_up = 0, most_frames = 0;
    uint64_t swallowed = 0, most_swallowed = 0;
    for (int i = 0; i < client_count; i++) {
        struct client *client = &clients[i];
        if (client->role != STALLED || !client->merged_at || !client->current_at)
            continue;
        uint32_t frames = client->current_at - client->merged_at + 1;
        caught_up++;
        most_frames = frames > most_frames ? frames : most_frames;
        swallowed += client->swallowed;
        most_swallowed = client->swallowed > most_swallowed ? client->swallowed : most_swallowed;
    }
    printf("{\"were_stale\": %d, \"stale\": %d, \"gone\": %d, \"misordered\": %llu, "
           "\"unexpected\": %llu, \"merged\": %llu, \"seconds\": %.6f, \"caught_up\": %u, "
           "\"most_frames\": %u, \"swallowed\": %llu, \"most_swallowed\": %llu}\n",
           were_stale, stale_clients, gone_clients(), (unsigned long long)seen.misordered,
           (unsigned long long)seen.unexpected, (unsigned long long)seen.merged,
           (double)(now - began) / 1e9, caught_up, most_frames,
           (unsigned long long)(caught_up ? swallowed / caught_up : 0),
           (unsigned long long)most_swallowed);
}

static void command_publish(double seconds, uint32_t window, uint32_t enough, double rate) {
    memset(&seen, 0, sizeof seen);
    uint32_t first = head;
    double cpu = own_cpu();
    uint64_t began = now_ns(), progress = began, before = 0, due = 0;
    uint64_t end = began + (uint64_t)(seconds * 1e9);
    int timer_fd = -1;
    if (rate > 0) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct timespec interval = {(time_t)(1 / rate), (long)(1e9 / rate) % 1000000000};
        struct itimerspec timer = {interval, interval};
        timerfd_settime(timer_fd, 0, &timer, NULL);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, &event);
    }
    bool lost = false;
    uint64_t now = began;
    while (!lost && (now < end || head - first < enough || tail != head)) {
        bool more = now < end || head - first < enough;
        if (more && rate <= 0 && head - tail <= window / 2) {
            while (head - tail < window)
                publish();
        }
        if (now < end && rate > 0) {
            due = (uint64_t)((double)(now - began) / 1e9 * rate);
            for (; head - first + seen.held < due;) {
                if (head - tail >= RING - 1)
                    seen.held++;
                else
                    publish();
            }
        }
        if (redis_out_size)
            redis_flush();
        turn(50, timer_fd);
        advance();
        now = now_ns();
        sip(now);
        if (seen.delivered != before || tail == head) {
            before = seen.delivered;
            progress = now;
        } else if ((double)(now - progress) > PATIENCE * 1e9) {
            lost = true;
        }
    }
    if (timer_fd >= 0)
        close(timer_fd);
    uint64_t missing = 0;
    for (uint32_t number = tail; number != head; number++)
        missing += ring_left[number % RING];
    double wall = (double)(now - began) / 1e9;
    printf("{\"published\": %u, \"delivered\": %llu, \"lost\": %llu, \"misordered\": %llu, "
           "\"unexpected\": %llu, \"held\": %llu, \"gone\": %d, \"redis_errors\": %llu, "
           "\"merged\": %llu, \"frames\": %llu, \"bytes\": %llu, \"reads\": %llu, \"seconds\": %.6f, "
           "\"load_cpu\": %.6f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
           "\"max_us\": %.1f}\n",
           head - first, (unsigned long long)seen.delivered, (unsigned long long)missing,
           (unsigned long long)seen.misordered, (unsigned long long)seen.unexpected,
           (unsigned long long)seen.held, gone_clients(),
           (unsigned long long)seen.redis_errors, (unsigned long long)seen.merged,
           (unsigned long long)seen.frames, (unsigned long long)seen.bytes,
           (unsigned long long)seen.reads, wall, own_cpu() - cpu, percentile_us(0.5),
           percentile_us(0.99), percentile_us(0.999), percentile_us(0.9999999));
    tail = head;
}

int main(int count, char **words) {
    if (count != 5 || sizeof TEMPLATE != PAYLOAD + 1 || TEMPLATE[NUMBER_AT] != '@')
        die("usage: load PORT REDIS-SOCKET json|bare plain|tls");
    server_port = atoi(words[1]);
    json_style = !strcmp(words[3], "json");
    with_tls = !strcmp(words[4], "tls");
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    setvbuf(stdout, NULL, _IOLBF, 0);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    redis_connect(words[2]);
    if (with_tls) {
        tls_context = SSL_CTX_new(TLS_client_method());
        SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
        SSL_CTX_set_quiet_shutdown(tls_context, 1);
        SSL_CTX_set_read_ahead(tls_context, 1);
        SSL_CTX_set_default_read_buffer_len(tls_context, 64 * 1024);
        SSL_CTX_set_mode(tls_context, SSL_MODE_RELEASE_BUFFERS);
        SSL_CTX_set_session_cache_mode(tls_context,
                                       SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
        SSL_CTX_sess_set_new_cb(tls_context, new_session);
    }
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        int a, b;
        double x, y;
        struct crowd crowd = {0};
        if (sscanf(line, "connect %d %d %d %d %d %d %d %d", &crowd.count, &crowd.symbols,
                   &crowd.watched, &crowd.stalled, &crowd.slow, &crowd.theirs, &crowd.interval,
                   &crowd.spread) >= 3)
            command_connect(crowd);
        else if (sscanf(line, "closed %lf %d %d", &x, &a, &b) == 3)
            command_publish(x, (uint32_t)a, (uint32_t)b, 0);
        else if (sscanf(line, "open %lf %lf", &x, &y) == 2)
            command_publish(x, 0, 0, y);
        else if (!strncmp(line, "settle", 6))
            command_settle();
        else if (!strncmp(line, "disconnect", 10))
            command_disconnect(strstr(line, "keep") != NULL);
        else if (!strncmp(line, "quit", 4))
            break;
        else
            die("unknown command: %s", line);
    }
    return 0;
}
