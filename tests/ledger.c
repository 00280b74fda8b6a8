/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A bank's clients, who keep a ledger of their own: what PostgreSQL told them is committed, and when.
 * After the host of the database was lost, the ledger says whether the database still knows all of it.
 *
 * Each client runs TPC-B transactions, statement by statement as pgbench does.  The moment COMMIT returns,
 * a line goes to the log; when the connection breaks after COMMIT was sent, nobody knows, and the
 * log says so.  The log, one line an event in the order of time, times in microseconds:
 *
 *     run ID                                  history.run of this run
 *     ack CLIENT SEQ DELTA TIME LATENCY       committed; latency from BEGIN sent to COMMIT answered
 *     doubt CLIENT SEQ DELTA TIME LATENCY     the connection broke inside COMMIT
 *     broken CLIENT TIME                      the connection broke, or hung until the end
 *     mark NAME                               a phase begins: written by whoever steers the run
 *     end TIME
 *
 * The tables hold a second truth: every transaction moves DELTA in one account, one teller, one branch
 * and the history, so each balance is the sum of its history, or a transaction was applied by half (R4).
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "common/cleanup.h"
#include "common/clock.h"

#define BRANCHES 64
#define TELLERS (10 * BRANCHES)
#define ACCOUNTS (256 * BRANCHES)
#define CLIENTS_MAX 40
#define PHASES_MAX 16
#define PHASE_NAME_MAX 31
#define NS_PER_US UINT64_C(1000)
#define STOP_GRACE_S 8 /* a client that still waits for an answer then is cut off */

struct client {
    pthread_t thread;
    unsigned id;
    unsigned seed;
    uint64_t seq;
    uint64_t due; /* when its next transaction begins, with --rate */
    PGconn *conn;
    pthread_mutex_t lock; /* of conn against cut_off() */
};

static const char *conninfo = "";
static int log_fd = -1;
static uint64_t run_id;
static uint64_t period; /* of each client, with --rate; 0: the next as soon as one has ended */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool stop;
static atomic_uint_fast64_t committed, broken, errors;

static void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));

static void die(const char *fmt, ...)
{
    va_list ap;

    fputs("ledger: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(2);
}

/* The lock makes the order of the lines the order of their times. */
static void log_event(const char *what, const struct client *c, int delta, uint64_t begin)
{
    char line[160];
    uint64_t now;
    int len;
    SCOPED_LOCK(&log_lock);

    now = clock_ns();
    if (begin)
        len = snprintf(line, sizeof(line), "%s %u %" PRIu64 " %d %" PRIu64 " %" PRIu64 "\n", what,
                       c->id, c->seq, delta, now / NS_PER_US, (now - begin) / NS_PER_US);
    else if (c)
        len = snprintf(line, sizeof(line), "%s %u %" PRIu64 "\n", what, c->id, now / NS_PER_US);
    else
        len = snprintf(line, sizeof(line), "%s %" PRIu64 "\n", what, now / NS_PER_US);
    if (write(log_fd, line, (size_t)len) != len)
        die("cannot write the log: %s", strerror(errno));
}

/* The keep-alive settings find a dead server in about ten seconds; what --conninfo says goes first. */
static PGconn *connect_db(void)
{
    const char *keys[] = {"keepalives_idle", "keepalives_interval", "keepalives_count",
                          "tcp_user_timeout", "connect_timeout", "dbname", NULL};
    const char *values[] = {"2", "1", "8", "10000", "3", conninfo, NULL};

    return PQconnectdbParams(keys, values, 1);
}

static bool run_sql(PGconn *conn, const char *sql, const char *tag)
{
    PGresult *r = PQexec(conn, sql);
    bool ok = PQresultStatus(r) == PGRES_COMMAND_OK && strcmp(PQcmdStatus(r), tag) == 0;

    PQclear(r);
    return ok;
}

static void must_run(PGconn *conn, const char *sql)
{
    PGresult *r = PQexec(conn, sql);

    if (PQresultStatus(r) != PGRES_COMMAND_OK)
        die("%s: %s", sql, PQerrorMessage(conn));
    PQclear(r);
}

static bool change(PGconn *conn, const char *table, unsigned id, int delta)
{
    char sql[128];

    snprintf(sql, sizeof(sql), "UPDATE %s SET balance = balance + %d WHERE id = %u", table, delta,
             id);
    return run_sql(conn, sql, "UPDATE 1");
}

/* False when the connection is of no more use. */
static bool transaction(struct client *c)
{
    unsigned account = (unsigned)rand_r(&c->seed) % ACCOUNTS;
    unsigned teller = (unsigned)rand_r(&c->seed) % TELLERS;
    unsigned branch = (unsigned)rand_r(&c->seed) % BRANCHES;
    int delta = rand_r(&c->seed) % 10001 - 5000;
    uint64_t begin = clock_ns();
    char insert[192];

    c->seq++;
    snprintf(insert, sizeof(insert),
             "INSERT INTO history VALUES (%" PRIu64 ", %u, %" PRIu64 ", %u, %u, %u, %d, now())",
             run_id, c->id, c->seq, account, teller, branch, delta);
    if (!run_sql(c->conn, "BEGIN", "BEGIN") || !change(c->conn, "accounts", account, delta) ||
        !change(c->conn, "tellers", teller, delta) || !change(c->conn, "branches", branch, delta) ||
        !run_sql(c->conn, insert, "INSERT 0 1")) {
        errors++;
        return run_sql(c->conn, "ROLLBACK", "ROLLBACK");
    }
    if (!run_sql(c->conn, "COMMIT", "COMMIT")) {
        log_event("doubt", c, delta, begin);
        errors++;
        return false;
    }
    log_event("ack", c, delta, begin);
    committed++;
    return true;
}

static void set_conn(struct client *c, PGconn *conn)
{
    SCOPED_LOCK(&c->lock);

    PQfinish(c->conn);
    c->conn = conn;
}

/* One that comes late is followed by the next at once, so that the rate holds over time. */
static void wait_turn(struct client *c)
{
    if (period)
        clock_sleep_until(c->due += period);
}

static void *client_main(void *arg)
{
    struct client *c = arg;
    bool connected = false, alive;

    while (!stop) {
        set_conn(c, connect_db());
        if (PQstatus(c->conn) != CONNECTION_OK) {
            if (!connected)
                die("client %u: %s", c->id, PQerrorMessage(c->conn));
            clock_sleep_until(clock_ns() + 100 * NS_PER_MS);
            continue;
        }
        connected = true;
        do {
            wait_turn(c);
            alive = transaction(c);
        } while (alive && !stop);
        if (!alive) {
            broken++;
            log_event("broken", c, 0, 0);
        }
    }
    set_conn(c, NULL);
    return NULL;
}

/* Wakes a client that waits for a server which is gone. */
static void cut_off(struct client *c)
{
    SCOPED_LOCK(&c->lock);

    if (c->conn && PQsocket(c->conn) >= 0)
        shutdown(PQsocket(c->conn), SHUT_RDWR);
}

static void wait_for_stop(unsigned seconds, bool progress)
{
    uint64_t begin = clock_ns(), before = 0;
    const struct timespec second = {1, 0};
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    while (sigtimedwait(&signals, NULL, &second) < 0) {
        uint64_t passed = (clock_ns() - begin + NS_PER_S / 2) / NS_PER_S, now = committed;

        if (progress)
            fprintf(stderr, "%4" PRIu64 " s %5" PRIu64 " tps\n", passed, now - before);
        before = now;
        if (seconds && passed >= seconds)
            return;
    }
}

static int run_clients(unsigned count, unsigned seconds, bool progress)
{
    static struct client clients[CLIENTS_MAX];
    uint64_t begin = clock_ns();
    struct timespec deadline;
    sigset_t signals;
    char line[64];
    int len;

    run_id = begin / NS_PER_US;
    len = snprintf(line, sizeof(line), "run %" PRIu64 "\n", run_id);
    if (write(log_fd, line, (size_t)len) != len)
        die("cannot write the log: %s", strerror(errno));

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    for (unsigned i = 0; i < count; i++) {
        clients[i].id = i;
        clients[i].due = begin + i * period / count;
        clients[i].seed = (unsigned)run_id + i;
        pthread_mutex_init(&clients[i].lock, NULL);
        if (pthread_create(&clients[i].thread, NULL, client_main, &clients[i]))
            die("cannot start client %u of %u", i, count);
    }
    wait_for_stop(seconds, progress);
    stop = true;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += STOP_GRACE_S;
    for (unsigned i = 0; i < count; i++) {
        while (pthread_timedjoin_np(clients[i].thread, NULL, &deadline)) {
            cut_off(&clients[i]);
            deadline.tv_sec++;
        }
    }
    log_event("end", NULL, 0, 0);
    printf("{\"committed\": %" PRIu64 ", \"errors\": %" PRIu64 ", \"broken\": %" PRIu64
           ", \"tps\": %.1f}\n",
           committed, errors, broken,
           (double)committed * (double)NS_PER_S / (double)(clock_ns() - begin));
    return 0;
}

static int init_tables(unsigned patience_s)
{
    static const char *const make =
        "DROP TABLE IF EXISTS accounts, tellers, branches, history;"
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL, filler char(84));"
        "CREATE TABLE tellers (id int PRIMARY KEY, balance bigint NOT NULL, filler char(84));"
        "CREATE TABLE branches (id int PRIMARY KEY, balance bigint NOT NULL, filler char(88));"
        "CREATE TABLE history (run bigint NOT NULL, client int NOT NULL, seq bigint NOT NULL,"
        " account int NOT NULL, teller int NOT NULL, branch int NOT NULL, delta int NOT NULL,"
        " at timestamptz);"
        "CREATE INDEX ON history (run, client, seq)";
    static const struct {
        const char *table;
        unsigned rows;
    } fill[] = {{"accounts", ACCOUNTS}, {"tellers", TELLERS}, {"branches", BRANCHES}};
    uint64_t deadline = clock_ns() + patience_s * NS_PER_S;
    PGconn *conn = connect_db();
    char sql[128];

    while (PQstatus(conn) != CONNECTION_OK) {
        if (clock_ns() > deadline)
            die("no answer from the database within %u s: %s", patience_s, PQerrorMessage(conn));
        PQfinish(conn);
        clock_sleep_until(clock_ns() + 100 * NS_PER_MS);
        conn = connect_db();
    }
    must_run(conn, "SET client_min_messages = warning");
    must_run(conn, make);
    for (size_t i = 0; i < sizeof(fill) / sizeof(fill[0]); i++) {
        snprintf(sql, sizeof(sql), "INSERT INTO %s SELECT generate_series(0, %u), 0, ''",
                 fill[i].table, fill[i].rows - 1);
        must_run(conn, sql);
    }
    must_run(conn, "VACUUM ANALYZE");
    must_run(conn, "CHECKPOINT");
    PQfinish(conn);
    return 0;
}

/* One acknowledged or doubtful transaction of the log. */
struct entry {
    uint64_t client, seq;
    int delta;
    bool doubt;
    unsigned seen; /* times that the database has it */
};

struct phase {
    char name[PHASE_NAME_MAX + 1];
    size_t first, count; /* in ledger.latency */
    uint64_t gap_us;
};

/* What the log says. */
struct ledger {
    uint64_t run;
    struct entry *entries;
    size_t count, doubts, broken;
    uint64_t *latency; /* of the acknowledged, in the order of time */
    size_t acks;
    struct phase phases[PHASES_MAX];
    size_t phase_count;
};

static void count_gap(struct ledger *l, uint64_t *last, uint64_t now)
{
    struct phase *p = &l->phases[l->phase_count - 1];

    if (*last && now - *last > p->gap_us)
        p->gap_us = now - *last;
    *last = now;
}

static void begin_phase(struct ledger *l, const char *name)
{
    if (l->phase_count == PHASES_MAX)
        die("the log has more than %d marks", PHASES_MAX - 1);
    l->phases[l->phase_count].first = l->acks;
    snprintf(l->phases[l->phase_count++].name, PHASE_NAME_MAX + 1, "%s", name);
}

static void read_log(struct ledger *l, const char *path)
{
    FILE *f = fopen(path, "re");
    char line[160], word[PHASE_NAME_MAX + 1];
    uint64_t time, latency, last = 0;
    struct entry e;

    if (!f)
        die("%s: %s", path, strerror(errno));
    begin_phase(l, "start");
    for (size_t n = 1; fgets(line, sizeof(line), f); n++) {
        memset(&e, 0, sizeof(e));
        if (sscanf(line, "%31s %" SCNu64 " %" SCNu64 " %d %" SCNu64 " %" SCNu64, word, &e.client,
                   &e.seq, &e.delta, &time, &latency) == 6 &&
            (strcmp(word, "ack") == 0 || strcmp(word, "doubt") == 0)) {
            if ((l->count & (l->count - 1)) == 0) {
                size_t room = l->count ? 2 * l->count : 1;

                l->entries = reallocarray(l->entries, room, sizeof(e));
                l->latency = reallocarray(l->latency, room, sizeof(latency));
                if (!l->entries || !l->latency)
                    die("out of memory after %zu lines of %s", n, path);
            }
            e.doubt = *word == 'd';
            l->entries[l->count++] = e;
            if (e.doubt) {
                l->doubts++;
            } else {
                l->latency[l->acks++] = latency;
                l->phases[l->phase_count - 1].count++;
                count_gap(l, &last, time);
            }
        } else if (sscanf(line, "mark %31s", word) == 1) {
            begin_phase(l, word);
        } else if (sscanf(line, "end %" SCNu64, &time) == 1) {
            count_gap(l, &last, time);
        } else if (strncmp(line, "broken ", 7) == 0) {
            l->broken++;
        } else if (sscanf(line, "run %" SCNu64, &l->run) != 1) {
            die("%s:%zu: not a line of a ledger: %s", path, n, line);
        }
    }
    fclose(f);
}

static int by_client_seq(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;

    if (x->client != y->client)
        return x->client < y->client ? -1 : 1;
    return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;

    return *x < *y ? -1 : *x > *y;
}

static PGresult *must_query(PGconn *conn, const char *sql)
{
    PGresult *r = PQexec(conn, sql);

    if (PQresultStatus(r) != PGRES_TUPLES_OK)
        die("%s: %s", sql, PQerrorMessage(conn));
    return r;
}

/* Counts in each entry how often the database has it; returns how many rows no entry asks for. */
static size_t match_history(PGconn *conn, struct ledger *l)
{
    char sql[96];
    size_t unexpected = 0;
    PGresult *r;

    qsort(l->entries, l->count, sizeof(*l->entries), by_client_seq);
    snprintf(sql, sizeof(sql), "SELECT client, seq, delta FROM history WHERE run = %" PRIu64,
             l->run);
    r = must_query(conn, sql);
    for (int i = 0; i < PQntuples(r); i++) {
        struct entry key = {.client = strtoull(PQgetvalue(r, i, 0), NULL, 10),
                            .seq = strtoull(PQgetvalue(r, i, 1), NULL, 10)};
        struct entry *e = l->count ? bsearch(&key, l->entries, l->count, sizeof(key), by_client_seq)
                                   : NULL;

        if (e && atoi(PQgetvalue(r, i, 2)) == e->delta)
            e->seen++;
        else
            unexpected++;
    }
    PQclear(r);
    return unexpected;
}

/* Balances that are not the sum of their history. */
static size_t wrong_balances(PGconn *conn)
{
    static const char *const tables[][2] = {
        {"accounts", "account"}, {"tellers", "teller"}, {"branches", "branch"}};
    size_t wrong = 0;
    char sql[256];
    PGresult *r;

    for (size_t i = 0; i < 3; i++) {
        snprintf(sql, sizeof(sql),
                 "SELECT count(*) FROM %s t LEFT JOIN (SELECT %s AS id, sum(delta) AS moved FROM"
                 " history GROUP BY 1) h USING (id) WHERE t.balance <> coalesce(h.moved, 0)",
                 tables[i][0], tables[i][1]);
        r = must_query(conn, sql);
        wrong += strtoull(PQgetvalue(r, 0, 0), NULL, 10);
        PQclear(r);
    }
    return wrong;
}

static void print_latency(uint64_t *latency, size_t count, uint64_t gap_us)
{
    qsort(latency, count, sizeof(*latency), by_value);
    printf("\"latency_p50_ms\": %.2f, \"latency_p99_ms\": %.2f, \"service_gap_ms\": %.1f",
           count ? (double)latency[count / 2] / 1000.0 : 0.0,
           count ? (double)latency[count * 99 / 100] / 1000.0 : 0.0, (double)gap_us / 1000.0);
}

static int verify(const char *path)
{
    struct ledger l = {0};
    size_t lost = 0, duplicated = 0, unexpected, half;
    uint64_t gap_us = 0;
    PGconn *conn;

    read_log(&l, path);
    conn = connect_db();
    if (PQstatus(conn) != CONNECTION_OK)
        die("cannot verify: %s", PQerrorMessage(conn));
    unexpected = match_history(conn, &l);
    half = wrong_balances(conn);
    PQfinish(conn);
    for (size_t i = 0; i < l.count; i++) {
        lost += !l.entries[i].doubt && l.entries[i].seen == 0;
        duplicated += l.entries[i].seen > 1;
    }

    printf("{\"acknowledged\": %zu, \"lost\": %zu, \"duplicated\": %zu, \"unexpected\": %zu, "
           "\"half\": %zu, \"in_doubt\": %zu, \"broken\": %zu, \"phases\": [",
           l.acks, lost, duplicated, unexpected, half, l.doubts, l.broken);
    for (size_t i = 0; i < l.phase_count; i++) {
        struct phase *p = &l.phases[i];

        printf("%s{\"name\": \"%s\", \"acknowledged\": %zu, ", i ? ", " : "", p->name, p->count);
        print_latency(l.latency + p->first, p->count, p->gap_us);
        printf("}");
        if (p->gap_us > gap_us)
            gap_us = p->gap_us;
    }
    printf("], ");
    print_latency(l.latency, l.acks, gap_us);
    printf("}\n");
    free(l.entries);
    free(l.latency);
    return lost || duplicated || unexpected || half;
}

static const char usage[] =
    "usage: ledger --init [--conninfo C] [--seconds S]     make the tables; wait S for an answer\n"
    "       ledger --log FILE [--conninfo C] [--clients N] [--rate TPS] [--seconds S] [--progress]\n"
    "       ledger --verify --log FILE [--conninfo C]      exit status 1: something was lost\n"
    "C is a libpq connection string. TPS is of all clients together; without it they do what they can.\n"
    "Without --seconds the clients go on until SIGTERM or SIGINT.\n";

static unsigned number(const char *option, const char *text, unsigned max)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (end == text || *end || *text == '-' || n > max)
        die("--%s %s: must be a number from 0 to %u", option, text, max);
    return (unsigned)n;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"init", no_argument, NULL, 'i'},           {"verify", no_argument, NULL, 'v'},
        {"conninfo", required_argument, NULL, 'c'}, {"clients", required_argument, NULL, 'n'},
        {"seconds", required_argument, NULL, 's'},  {"log", required_argument, NULL, 'l'},
        {"rate", required_argument, NULL, 'r'},     {"progress", no_argument, NULL, 'p'},
        {"help", no_argument, NULL, 'h'},           {NULL, 0, NULL, 0}};
    const char *log_path = NULL;
    unsigned clients = 8, seconds = 0, rate = 0;
    bool progress = false;
    int mode = 0, o;

    while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (o) {
        case 'i':
        case 'v': mode = o; break;
        case 'c': conninfo = optarg; break;
        case 'n': clients = number("clients", optarg, CLIENTS_MAX); break;
        case 's': seconds = number("seconds", optarg, 86400); break;
        case 'r': rate = number("rate", optarg, 1000000); break;
        case 'l': log_path = optarg; break;
        case 'p': progress = true; break;
        case 'h': fputs(usage, stdout); return 0;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (optind < argc || (mode == 'i') != !log_path) {
        fputs(usage, stderr);
        return 2;
    }
    if (mode == 'i')
        return init_tables(seconds);
    if (mode == 'v')
        return verify(log_path);
    log_fd = open(log_path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    if (log_fd < 0)
        die("%s: %s", log_path, strerror(errno));
    period = rate ? clients * NS_PER_S / rate : 0;
    return run_clients(clients, seconds, progress);
}
