/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What holding packets costs the clients of a real PostgreSQL: a transaction like TPC-C's
 * new-order, statement by statement as its client sends it, in three modes: nothing held, every
 * packet held (strict), commit protection. The server runs natively in a network namespace; gated.h
 * says what is real and what is not.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <glob.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pwd.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench/bench.h"
#include "bench/gated.h"
#include "common/clock.h"

#define INTERVAL_MS 25u
#define ACK_MS 5u
#define WARM_MS 500
#define RUN_MS 1500
#define ROUNDS 5u /* of all modes: what else the machine does meets each of them */
#define LINES_MIN 5u
#define LINES_MAX 11u /* in the mean 31 statements */
#define STATEMENTS(lines) (7 + 3 * (lines))
#define CLIENTS_MAX 32u

enum kind { BEGIN, STATEMENT, COMMIT, TRANSACTION, KINDS };
static const char *const kind_names[KINDS] = {"begin", "statement", "commit", "transaction"};

struct samples {
    double *ms;
    size_t count, room;
};

enum { MODES = 4 };
static const struct mode {
    const char *name, *services;
    bool protect, active;
} modes[MODES] = {{"unprotected", "", false, false},
                  {"strict", "", true, false},
                  {"commit", "pgsql:5432", true, true},
                  {"commit-in-transaction", "pgsql:5432", true, false}};

struct client {
    int fd;
    unsigned at; /* statement of the transaction, in its order */
    unsigned warehouse, district, customer, order, lines, item[LINES_MAX];
    uint64_t sent, began; /* the statement, the transaction */
    uint8_t in[4096];
    size_t have;
    bool greeted;
};

static struct client client[CLIENTS_MAX];
static struct samples samples[MODES][KINDS], *now_sampling; /* of the mode that runs */
static struct {
    uint64_t checkpoints, ns;
} taken[MODES];
static uint64_t measured_from;
static char failure[256];

static void sample(enum kind kind, uint64_t ns)
{
    struct samples *s = &now_sampling[kind];

    if (s->count == s->room) {
        s->room = s->room ? 2 * s->room : 1024;
        s->ms = realloc(s->ms, s->room * sizeof(*s->ms));
        if (!s->ms)
            abort();
    }
    s->ms[s->count++] = (double)ns / 1e6;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double percentile(struct samples *s, unsigned percent)
{
    if (s->count == 0)
        return 0;
    qsort(s->ms, s->count, sizeof(*s->ms), by_value);
    return s->ms[(s->count - 1) * percent / 100];
}

/* The transaction */

static int by_number(const void *a, const void *b)
{
    return (int)(*(const unsigned *)a - *(const unsigned *)b);
}

static void new_transaction(struct client *c)
{
    c->at = 0;
    c->customer = 1 + (unsigned)random() % 1000;
    c->lines = LINES_MIN + (unsigned)random() % (LINES_MAX - LINES_MIN + 1);
    for (unsigned i = 0; i < c->lines; i++)
        c->item[i] = 1 + (unsigned)random() % 20000;
    qsort(c->item, c->lines, sizeof(c->item[0]), by_number); /* in order: no deadlocks */
}

static int order_line(const struct client *c, char *sql, size_t size, unsigned line)
{
    unsigned item = c->item[line / 3];

    switch (line % 3) {
    case 0:
        return snprintf(sql, size, "SELECT i_price, i_name FROM item WHERE i_id = %u", item);
    case 1:
        return snprintf(sql, size,
                        "UPDATE stock SET s_quantity = s_quantity - 1, s_ytd = s_ytd + 1 "
                        "WHERE s_w_id = %u AND s_i_id = %u RETURNING s_dist",
                        c->warehouse, item);
    default:
        return snprintf(sql, size,
                        "INSERT INTO order_line VALUES (%u, %u, %u, %u, %u, NULL, 1, 9.5, 'x')",
                        c->warehouse, c->district, c->order, line / 3 + 1, item);
    }
}

static int statement(const struct client *c, char *sql, size_t size)
{
    unsigned w = c->warehouse, d = c->district;

    switch (c->at) {
    case 0:
        return snprintf(sql, size, "BEGIN");
    case 1:
        return snprintf(sql, size, "SELECT w_tax FROM warehouse WHERE w_id = %u", w);
    case 2:
        return snprintf(sql, size,
                        "UPDATE district SET d_next_o_id = d_next_o_id + 1 WHERE d_w_id = %u AND "
                        "d_id = %u RETURNING d_next_o_id - 1",
                        w, d);
    case 3:
        return snprintf(sql, size,
                        "SELECT c_discount, c_last FROM customer WHERE c_w_id = %u AND c_d_id = %u "
                        "AND c_id = %u",
                        w, d, c->customer);
    case 4:
        return snprintf(sql, size, "INSERT INTO orders VALUES (%u, %u, %u, %u, now(), NULL, %u)", w,
                        d, c->order, c->customer, c->lines);
    case 5:
        return snprintf(sql, size, "INSERT INTO new_order VALUES (%u, %u, %u)", w, d, c->order);
    default:
        if (c->at == STATEMENTS(c->lines) - 1)
            return snprintf(sql, size, "COMMIT");
        return order_line(c, sql, size, c->at - 6);
    }
}

/* PostgreSQL's protocol 3, simple queries */

static void fail(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    if (!failure[0])
        vsnprintf(failure, sizeof(failure), fmt, ap);
    va_end(ap);
}

static void put32(uint8_t *p, size_t v)
{
    uint32_t n = htonl((uint32_t)v);

    memcpy(p, &n, 4);
}

static void next_statement(struct client *c)
{
    char message[512] = "Q";
    int n = statement(c, message + 5, sizeof(message) - 5);

    put32((uint8_t *)message + 1, (size_t)n + 5);
    c->sent = clock_ns();
    if (c->at == 0)
        c->began = c->sent;
    if (send(c->fd, message, (size_t)n + 6, MSG_NOSIGNAL) != n + 6)
        fail("a client cannot send: %s", strerror(errno));
}

static void answered(struct client *c)
{
    uint64_t now = clock_ns();
    enum kind kind = c->at == 0 ? BEGIN : c->at == STATEMENTS(c->lines) - 1 ? COMMIT : STATEMENT;

    if (c->greeted && c->sent >= measured_from)
        sample(kind, now - c->sent);
    if (!c->greeted || kind == COMMIT) {
        if (c->greeted && c->began >= measured_from)
            sample(TRANSACTION, now - c->began);
        c->greeted = true;
        new_transaction(c);
    } else {
        c->at++;
    }
    next_statement(c);
}

static void message(struct client *c, uint8_t type, const uint8_t *body, size_t len)
{
    if (type == 'E')
        fail("the server says: %.*s", (int)len, (const char *)body);
    if (type == 'D' && c->at == 2 && len > 6)
        c->order = (unsigned)strtoul((const char *)body + 6, NULL, 10); /* the end is in the tag */
    if (type == 'Z')
        answered(c);
}

static void receive(struct client *c)
{
    ssize_t n = recv(c->fd, c->in + c->have, sizeof(c->in) - c->have, MSG_DONTWAIT);
    uint32_t len;

    if (n <= 0) {
        fail("a connection ended: %s", n ? strerror(errno) : "closed");
        return;
    }
    c->have += (size_t)n;
    while (c->have >= 5 && !failure[0]) {
        memcpy(&len, c->in + 1, 4);
        len = ntohl(len) + 1;
        if (len > sizeof(c->in))
            fail("a message of %u octets", len);
        if (c->have < len)
            return;
        message(c, c->in[0], c->in + 5, len - 5);
        c->have -= len;
        memmove(c->in, c->in + len, c->have);
    }
}

static int connect_client(struct client *c)
{
    static const char startup[] = "\0\0\0\x29\0\3\0\0user\0postgres\0database\0postgres\0";
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(5432)};
    int one = 1;

    inet_pton(AF_INET, "10.77.0.2", &a.sin_addr);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (connect(c->fd, (struct sockaddr *)&a, sizeof(a)) < 0 ||
        send(c->fd, startup, sizeof(startup), MSG_NOSIGNAL) != sizeof(startup))
        return -1;
    return 0;
}

static void load(unsigned clients)
{
    struct pollfd fds[CLIENTS_MAX];
    uint64_t end;

    for (unsigned i = 0; i < clients; i++) {
        client[i] = (struct client){.warehouse = i % 4 + 1, .district = i / 4 + 1};
        if (connect_client(&client[i]) < 0)
            fail("10.77.0.2:5432: %s", strerror(errno));
        fds[i] = (struct pollfd){.fd = client[i].fd, .events = POLLIN};
    }
    measured_from = clock_ns() + WARM_MS * NS_PER_MS;
    end = measured_from + RUN_MS * NS_PER_MS;
    while (!failure[0] && clock_ns() < end) {
        poll(fds, clients, 50);
        for (unsigned i = 0; i < clients; i++)
            if (fds[i].revents)
                receive(&client[i]);
    }
    for (unsigned i = 0; i < clients; i++)
        close(client[i].fd);
}

/* Server and modes */

static int shell(const char *fmt, ...)
{
    char command[1024];
    va_list ap;
    int rc;

    va_start(ap, fmt);
    vsnprintf(command, sizeof(command), fmt, ap);
    va_end(ap);
    rc = system(command);
    if (rc != 0)
        fail("this failed: %s", command);
    return rc;
}

static const struct passwd *user;

static void as_user(void)
{
    if (setgid(user->pw_gid) < 0 || setuid(user->pw_uid) < 0)
        _exit(1);
    prctl(PR_SET_PDEATHSIG, SIGQUIT);
}

/* In the caller's network namespace; -1 or its process, which ends with ours. */
static pid_t start_server(const char *dir, const char *bin)
{
    char path[512], data[128], socket_dir[128];
    pid_t pid;

    if (chown(dir, user->pw_uid, user->pw_gid) < 0 ||
        shell("cd / && setpriv --reuid=%u --regid=%u --clear-groups %s/initdb -D %s/db -A trust -U "
              "postgres "
              "-N >%s/log 2>&1 && echo 'host all all 10.77.0.0/24 trust' >>%s/db/pg_hba.conf",
              user->pw_uid, user->pw_gid, bin, dir, dir, dir))
        return -1;
    pid = fork();
    if (pid == 0) {
        snprintf(path, sizeof(path), "%s/postgres", bin);
        snprintf(data, sizeof(data), "%s/db", dir);
        snprintf(socket_dir, sizeof(socket_dir), "-k%s", dir);
        as_user();
        if (chdir("/") < 0 || !freopen("/dev/null", "w", stderr))
            _exit(1);
        execl(path, "postgres", "-D", data, socket_dir, "-clisten_addresses=*",
              "-cmax_connections=80", "-cshared_buffers=128MB", "-cmax_wal_size=4GB",
              "-cautovacuum=off", (char *)NULL);
        _exit(1);
    }
    if (shell("for i in $(seq 200); do %s/pg_isready -q -h %s && break; sleep 0.1; done", bin,
              dir) ||
        shell("%s/psql -q -h %s -U postgres -d postgres -f '" SOURCE_DIR
              "/netbuf-schema.sql' >/dev/null 2>%s/psql.log",
              bin, dir, dir)) {
        kill(pid, SIGQUIT);
        waitpid(pid, NULL, 0);
        return -1;
    }
    return pid;
}

static void print(unsigned m, unsigned clients)
{
    const struct mode *mode = &modes[m];
    struct samples *s = samples[m];

    if (mode->protect)
        printf("{\"case\": \"checkpoints\", \"mode\": \"%s\", \"clients\": %u, \"per_s\": %.1f}\n", mode->name, clients,
               (double)taken[m].checkpoints * 1e9 / (double)taken[m].ns);
    for (unsigned i = 0; i < KINDS; i++)
        printf("{\"case\": \"%s\", \"mode\": \"%s\", \"clients\": %u, \"tps\": %.1f, "
               "\"latency_p50_ms\": %.3f, \"latency_p99_ms\": %.3f}\n",
               kind_names[i], mode->name, clients,
               (double)s[i == TRANSACTION ? COMMIT : i].count * 1000 / (ROUNDS * RUN_MS),
               percentile(&s[i], 50), percentile(&s[i], 99));
}

static void run_mode(const char *dir, int guest_tap, unsigned m, unsigned clients)
{
    const struct mode *mode = &modes[m];
    struct gated_config cfg = {.dir = dir,
                               .guest_tap = guest_tap,
                               .tap = "client0",
                               .services = mode->services,
                               .open_active = mode->active,
                               .protect = mode->protect,
                               .interval_ms = INTERVAL_MS,
                               .ack_ms = ACK_MS};
    struct gated *g;
    struct error err;

    g = gated_open(&cfg, &err);
    if (!g) {
        fail("%s", err.text);
        return;
    }
    if (!shell("ip address add 10.77.0.1/24 dev client0")) {
        uint64_t before = gated_checkpoints(g), began = clock_ns();
        load(clients);
        taken[m].checkpoints += gated_checkpoints(g) - before;
        taken[m].ns += clock_ns() - began;
    }
    usleep(200000); /* the server sees the connections close, and rolls back */
    gated_close(g);
}

static void run_modes(const char *dir, int guest_tap, unsigned clients)
{
    for (unsigned m = 0; m < MODES; m++) {
        for (unsigned i = 0; i < KINDS; i++)
            samples[m][i].count = 0;
        taken[m].checkpoints = taken[m].ns = 0;
    }
    for (unsigned i = 0; i < ROUNDS * MODES && !failure[0]; i++) {
        now_sampling = samples[i % MODES];
        run_mode(dir, guest_tap, i % MODES, clients);
    }
    for (unsigned m = 0; m < MODES && !failure[0]; m++)
        print(m, clients);
}

static void run_all(const char *dir, const char *bin)
{
    static const unsigned clients[] = {1, CLIENTS_MAX};
    pid_t server;
    int guest_tap;

    /* Where others want the processors too, the share of a server depends on how many of its processes can run: unprotected most. */
    setpriority(PRIO_PROCESS, 0, -15);
    if (unshare(CLONE_NEWNET) < 0 || (guest_tap = gated_tap("guest0")) < 0) {
        fail("a network namespace with a tap: %s", strerror(errno));
        return;
    }
    if (shell(
            "ip link set lo up && ip address add 10.77.0.2/24 dev guest0 && ip link set guest0 up"))
        return;
    server = start_server(dir, bin);
    if (server < 0)
        return;
    printf("{\"case\": \"setup\", \"interval_ms\": %u, \"ack_ms\": %u, \"statements\": %u, "
           "\"server\": "
           "\"PostgreSQL, native\", \"simulated\": \"checkpoints: no VM is paused or "
           "copied, an acknowledgement comes ack_ms after its barrier\"}\n",
           INTERVAL_MS, ACK_MS, STATEMENTS((LINES_MIN + LINES_MAX) / 2));
    if (unshare(CLONE_NEWNET) < 0)
        fail("a network namespace: %s", strerror(errno));
    else if (shell("ip link set lo up; echo 1000 >/proc/sys/net/unix/max_dgram_qlen") == 0)
        for (unsigned k = 0; k < 2 && !failure[0]; k++)
            run_modes(dir, guest_tap, clients[k]);
    kill(server, SIGQUIT);
    waitpid(server, NULL, 0);
}

int bench_netbuf_pgsql(void)
{
    char dir[] = "/tmp/bench-netbuf-XXXXXX", *bin;
    const char *missing = NULL;
    glob_t found = {0};

    user = getpwnam("postgres");
    if (geteuid() != 0)
        missing = "needs root, for network namespaces";
    else if (!user)
        missing = "there is no user postgres";
    else if (glob("/usr/lib/postgresql/*/bin/initdb", 0, NULL, &found) != 0)
        missing = "no PostgreSQL server here (Debian: postgresql)";
    if (missing) {
        fprintf(stderr, "remus-bench netbuf: the database's figures are skipped: %s\n", missing);
        return 0;
    }
    bin = found.gl_pathv[found.gl_pathc - 1];
    *strrchr(bin, '/') = '\0';
    if (!mkdtemp(dir))
        return 1;
    chmod(dir, 0755);
    run_all(dir, bin);
    globfree(&found);
    if (failure[0])
        fprintf(stderr, "remus-bench netbuf: %s\n", failure);
    for (unsigned i = 0; i < MODES * KINDS; i++)
        free(samples[i / KINDS][i % KINDS].ms);
    return shell("rm -rf %s", dir) || failure[0] ? 1 : 0;
}
