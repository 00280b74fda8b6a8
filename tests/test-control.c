/* SPDX-License-Identifier: GPL-2.0-or-later */
/* R10: whatever a client sends or does not send, the control socket answers or drops it, and serves the others. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/control.h"

#define BIG (1u << 20)

static char dir[] = "/tmp/test-control-XXXXXX";
static struct sockaddr_un addr = {.sun_family = AF_UNIX};
static struct event_base *base;
static struct control *control;
static pthread_t thread;
static char mine[] = "mine"; /* handler's argument */

/* -- verbs ------------------------------------------------------------------------------------ */

static int verb_echo(void *arg, const char *vm, const json_t *args, json_t **result,
                     struct control_error *err)
{
    (void)err;
    *result = json_pack("{s:s, s:s?, s:O}", "arg", arg, "vm", vm, "args", args);
    return 0;
}

static int verb_nothing(void *arg, const char *vm, const json_t *args, json_t **result,
                        struct control_error *err)
{
    (void)arg;
    (void)vm;
    (void)args;
    (void)result;
    (void)err;
    return 0;
}

static int verb_refuse(void *arg, const char *vm, const json_t *args, json_t **result,
                       struct control_error *err)
{
    (void)arg;
    (void)args;
    (void)result;
    return vm ? control_fail(err, CONTROL_REFUSED, "%s is not protected", vm)
              : error_set(&err->text, "cut in \xc3");
}

static int verb_big(void *arg, const char *vm, const json_t *args, json_t **result,
                    struct control_error *err)
{
    char *text = malloc(BIG + 1);

    (void)arg;
    (void)vm;
    (void)args;
    (void)err;
    memset(text, 'x', BIG);
    text[BIG] = '\0';
    *result = json_string(text);
    free(text);
    return 0;
}

static void *run(void *arg)
{
    event_base_loop(arg, EVLOOP_NO_EXIT_ON_EMPTY);
    return NULL;
}

static int start(void **state)
{
    struct error err;

    (void)state;
    signal(SIGPIPE, SIG_IGN); /* as control.h wants it */
    evthread_use_pthreads();
    base = event_base_new();
    control = control_new(base, addr.sun_path, &err);
    if (!base || !control)
        return -1;
    control_register(control, "echo", verb_refuse, NULL); /* the next line replaces it */
    control_register(control, "echo", verb_echo, mine);
    control_register(control, "nothing", verb_nothing, NULL);
    control_register(control, "refuse", verb_refuse, NULL);
    control_register(control, "big", verb_big, NULL);
    return pthread_create(&thread, NULL, run, base);
}

static int stop(void **state)
{
    (void)state;
    event_base_loopexit(base, NULL); /* counts even if the loop has not begun yet */
    pthread_join(thread, NULL);
    control_free(control);
    event_base_free(base);
    return access(addr.sun_path, F_OK) == 0 ? -1 : 0;
}

/* -- a client --------------------------------------------------------------------------------- */

static int connect_client(void)
{
    const struct timeval patience = {20, 0};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
    assert_int_equal(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    return fd;
}

/* A daemon that has heard enough may close: no error. */
static void put(int fd, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

        if (n < 0 && errno == EPIPE)
            return;
        assert_true(n > 0);
        data += n;
        len -= (size_t)n;
    }
}

static void put_line(int fd, const char *line)
{
    put(fd, line, strlen(line));
    put(fd, "\n", 1);
}

/* The next line; NULL at the end.  The caller frees it. */
static char *get(int fd)
{
    size_t len = 0, cap = 2 * BIG;
    char *line = malloc(cap);

    for (;;) {
        ssize_t n = recv(fd, line + len, 1, 0);

        if (n <= 0) {
            assert_true(n == 0 || errno == ECONNRESET);
            assert_int_equal(len, 0);
            free(line);
            return NULL;
        }
        if (line[len] == '\n')
            break;
        assert_true(++len < cap);
    }
    line[len] = '\0';
    return line;
}

static void expect_line(int fd, const char *want)
{
    char *line = get(fd);

    assert_non_null(line);
    assert_string_equal(line, want);
    free(line);
}

/* The answer must be an error of this code that says this. */
static void expect_error(int fd, const char *code, const char *says)
{
    char *line = get(fd);
    json_t *reply;

    assert_non_null(line);
    reply = json_loads(line, 0, NULL);
    assert_true(json_is_false(json_object_get(reply, "ok")));
    assert_string_equal(json_string_value(json_object_get(reply, "code")), code);
    if (!strstr(json_string_value(json_object_get(reply, "error")), says))
        fail_msg("no \"%s\" in %s", says, line);
    json_decref(reply);
    free(line);
}

#define REQUEST "{\"format\":1,\"verb\":\"nothing\"}"
#define REPLY "{\"format\":1,\"ok\":true,\"result\":null}"

static void expect_alive(void)
{
    int fd = connect_client();

    put_line(fd, REQUEST);
    expect_line(fd, REPLY);
    close(fd);
}

/* -- tests ------------------------------------------------------------------------------------ */

static void test_verbs(void **state)
{
    static const char echo[] = "{\"format\":1,\"verb\":\"echo\",\"vm\":\"db1\",\"args\":{\"a\":1}}\n"
                               "{\"format\":1,\"verb\":\"echo\"}";
    int fd = connect_client();

    (void)state;
    put_line(fd, echo);
    expect_line(fd, "{\"format\":1,\"ok\":true,\"result\":"
                    "{\"arg\":\"mine\",\"vm\":\"db1\",\"args\":{\"a\":1}}}");
    expect_line(fd, "{\"format\":1,\"ok\":true,\"result\":"
                    "{\"arg\":\"mine\",\"vm\":null,\"args\":{}}}");
    put_line(fd, "{\"format\":1,\"verb\":\"refuse\",\"vm\":\"db1\"}");
    expect_error(fd, "refused", "db1 is not protected");
    put_line(fd, "{\"format\":1,\"verb\":\"refuse\"}");
    expect_error(fd, "failed", "cut in ?");
    close(fd);
}

static void test_r10_nonsense(void **state)
{
    static const struct {
        const char *line, *says;
    } bad[] = {
        {"", "not a JSON request"},
        {"hello", "not a JSON request"},
        {"\xff\xfe\x01", "not a JSON request"},
        {"{\"format\":1,\"verb\":\"nothing\"", "not a JSON request"},
        {"{\"format\":1,\"verb\":\"nothing\"} x", "not a JSON request"},
        {"{\"format\":1,\"format\":1,\"verb\":\"nothing\"}", "not a JSON request"},
        {"{\"format\":1,\"verb\":\"noth\\u0000ing\"}", "not a JSON request"},
        {"{\"format\":99999999999999999999,\"verb\":\"nothing\"}", "not a JSON request"},
        {"[]", "no JSON object"},
        {"{}", "are needed"},
        {"{\"format\":1}", "are needed"},
        {"{\"verb\":\"nothing\"}", "are needed"},
        {"{\"format\":2,\"verb\":\"nothing\"}", "speaks format 1"},
        {"{\"format\":\"1\",\"verb\":\"nothing\"}", "speaks format 1"},
        {"{\"format\":1.0,\"verb\":\"nothing\"}", "speaks format 1"},
        {"{\"format\":1,\"verb\":[\"nothing\"]}", "must be a string"},
        {"{\"format\":1,\"verb\":\"\"}", "does not know the verb"},
        {"{\"format\":1,\"verb\":\"explode\"}", "does not know the verb \"explode\""},
        {"{\"format\":1,\"verb\":\"nothing\",\"vm\":null}", "name of a VM"},
        {"{\"format\":1,\"verb\":\"nothing\",\"vm\":\"\"}", "name of a VM"},
        {"{\"format\":1,\"verb\":\"nothing\",\"vm\":\"../../etc\"}", "name of a VM"},
        {"{\"format\":1,\"verb\":\"nothing\",\"args\":[]}", "must be an object"},
        {"{\"format\":1,\"verb\":\"nothing\",\"argz\":{}}", "unknown field \"argz\""},
    };
    int fd = connect_client();

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        put_line(fd, bad[i].line);
        expect_error(fd, "usage", bad[i].says);
    }
    put_line(fd, REQUEST); /* and the same connection still serves */
    expect_line(fd, REPLY);
    close(fd);
}

static void test_r10_deep_nesting(void **state)
{
    size_t len = CONTROL_LINE_MAX - 2;
    char *line = malloc(len + 1);
    int fd = connect_client();

    (void)state;
    for (const char *c = "[{"; *c; c++) {
        memset(line, *c, len);
        line[len] = '\n';
        put(fd, line, len + 1);
        expect_error(fd, "usage", "not a JSON request");
    }
    free(line);
    close(fd);
}

/* The longest line that is taken, the shortest that is not, and a megabyte without an end. */
static void test_r10_long_lines(void **state)
{
    static const size_t lengths[] = {CONTROL_LINE_MAX - 1, CONTROL_LINE_MAX, BIG};
    char *line = malloc(BIG);

    (void)state;
    memset(line, ' ', BIG);
    for (size_t i = 0; i < 3; i++) {
        int fd = connect_client();

        put(fd, line, lengths[i]);
        if (i == 0) {
            put(fd, "\n", 1);
            expect_error(fd, "usage", "not a JSON request");
        } else {
            expect_error(fd, "usage", "longer than 65536");
            assert_null(get(fd)); /* closed */
        }
        close(fd);
        expect_alive();
    }
    free(line);
}

static void test_r10_half_a_line_blocks_nobody(void **state)
{
    int half = connect_client();

    (void)state;
    put(half, REQUEST, 10);
    expect_alive();
    put_line(half, &REQUEST[10]);
    expect_line(half, REPLY);
    put(half, REQUEST, 10);
    close(half); /* in the middle of a request */
    expect_alive();
}

/* Half closed: all that was asked before is answered, then the connection ends. */
static void test_end_of_file_after_requests(void **state)
{
    int fd = connect_client();

    (void)state;
    for (int i = 0; i < 3; i++)
        put_line(fd, REQUEST);
    put(fd, "{", 1);
    shutdown(fd, SHUT_WR);
    for (int i = 0; i < 3; i++)
        expect_line(fd, REPLY);
    assert_null(get(fd));
    close(fd);
}

/* R9: asks for 64 MiB of answers and takes none of them: neither memory nor the others suffer. */
static void test_r9_client_that_takes_nothing(void **state)
{
    static const char request[] = "{\"format\":1,\"verb\":\"big\"}";
    long before, after;
    char *line;
    int fd = connect_client();
    FILE *f = fopen("/proc/self/statm", "r");

    (void)state;
    assert_int_equal(fscanf(f, "%*s %ld", &before), 1);
    fclose(f);
    for (int i = 0; i < 64; i++) {
        put_line(fd, request);
        expect_alive(); /* so that each request is read on its own */
    }
    f = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(f, "%*s %ld", &after), 1);
    fclose(f);
    assert_in_range((after - before) * sysconf(_SC_PAGESIZE) / BIG + 64, 0, 64 + 32);
    for (int i = 0; i < 3; i++) {
        line = get(fd);
        assert_non_null(line);
        assert_in_range(strlen(line), BIG, BIG + 100);
        free(line);
    }
    close(fd);
    expect_alive();
}

static void test_r9_too_many_clients(void **state)
{
    int fd[CONTROL_CLIENTS_MAX], more;

    (void)state;
    for (int i = 0; i < CONTROL_CLIENTS_MAX; i++) {
        fd[i] = connect_client();
        put_line(fd[i], REQUEST);
        expect_line(fd[i], REPLY);
    }
    more = connect_client();
    expect_error(more, "busy", "try again");
    assert_null(get(more));
    close(more);
    put_line(fd[0], REQUEST);
    expect_line(fd[0], REPLY);
    shutdown(fd[0], SHUT_WR);
    assert_null(get(fd[0])); /* gone on the other side too */
    expect_alive();
    for (int i = 0; i < CONTROL_CLIENTS_MAX; i++)
        close(fd[i]);
}

static void test_r10_socket_is_private(void **state)
{
    struct stat st;
    int status;
    pid_t pid;

    (void)state;
    assert_int_equal(stat(addr.sun_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    if (geteuid() != 0)
        skip();
    /* Even when the mode is opened by mistake, SO_PEERCRED decides. */
    assert_int_equal(chmod(addr.sun_path, 0666), 0);
    assert_int_equal(chmod(dir, 0755), 0);
    pid = fork();
    if (pid == 0) {
        char buf[256] = "";
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);

        if (setuid(65534) < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
            recv(fd, buf, sizeof(buf) - 1, 0) <= 0)
            _exit(1);
        _exit(strstr(buf, "\"refused\"") ? 0 : 2);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(chmod(dir, 0700), 0);
    assert_int_equal(status, 0);
}

static void refuses_to_listen(const char *path, const char *says)
{
    struct error err = {""};

    assert_null(control_new(base, path, &err));
    if (!strstr(err.text, says))
        fail_msg("no \"%s\" in %s", says, err.text);
}

static void test_what_is_in_the_way(void **state)
{
    char path[128], longer[200];
    struct sockaddr_un stale = {.sun_family = AF_UNIX};
    struct control *c;
    struct error err;
    int fd;

    (void)state;
    refuses_to_listen(addr.sun_path, "another daemon answers");
    expect_alive(); /* the other one is unharmed */

    snprintf(path, sizeof(path), "%s/file", dir);
    close(creat(path, 0600));
    refuses_to_listen(path, "no socket; remove it");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink(addr.sun_path, path), 0);
    refuses_to_listen(path, "no socket; remove it");
    assert_int_equal(unlink(path), 0);

    memset(longer, 'a', sizeof(longer) - 1);
    longer[0] = '/';
    longer[sizeof(longer) - 1] = '\0';
    refuses_to_listen(longer, "shorter run-dir");
    refuses_to_listen("/nonexistent/x.sock", "No such file");

    /* what a killed daemon leaves: bound, but nobody listens */
    snprintf(stale.sun_path, sizeof(stale.sun_path), "%s/stale", dir);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&stale, sizeof(stale)), 0);
    close(fd);
    c = control_new(base, stale.sun_path, &err);
    assert_non_null(c);
    control_free(c);
    assert_int_equal(access(stale.sun_path, F_OK), -1);
}

static int make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/sock", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, start, stop)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_verbs),
        TEST(test_r10_nonsense),
        TEST(test_r10_deep_nesting),
        TEST(test_r10_long_lines),
        TEST(test_r10_half_a_line_blocks_nobody),
        TEST(test_end_of_file_after_requests),
        TEST(test_r9_client_that_takes_nothing),
        TEST(test_r9_too_many_clients),
        TEST(test_r10_socket_is_private),
        TEST(test_what_is_in_the_way),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
