/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The QMP client against a scripted QEMU: R10, and a QEMU that hangs or dies becomes a clear error.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "vm/qemu/qmp.h"

#define GREETING                                                                                   \
    "{\"QMP\":{\"version\":{\"qemu\":{\"micro\":22,\"minor\":2,\"major\":7},\"package\":\"x\"},"   \
    "\"capabilities\":[\"oob\"]}}\r\n"
#define READY "{\"return\":{},\"id\":1}\r\n"

/*
 * Sends step[0] at once and step[i] after the i-th command; NULL at the end: closes, unless it is
 * to be silent.
 */
struct script {
    const char *steps[8];
    bool silent;
    int listener;
    pthread_t thread;
    char path[64];
};

static void *serve(void *arg)
{
    struct script *s = arg;
    int fd = accept(s->listener, NULL, NULL);
    char c;

    for (int i = 0; s->steps[i]; i++) {
        const char *text = s->steps[i];
        size_t len = strlen(text);

        if (i > 0)
            while (read(fd, &c, 1) == 1 && c != '\n')
                ;
        while (len) {
            ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

            if (n <= 0)
                break;
            text += n;
            len -= (size_t)n;
        }
    }
    while (s->silent && read(fd, &c, 1) == 1)
        ;
    close(fd);
    return NULL;
}

static void start(struct script *s)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};

    snprintf(s->path, sizeof(s->path), "/tmp/test-qmp-%d", (int)getpid());
    strcpy(address.sun_path, s->path);
    unlink(s->path);
    s->listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(s->listener, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(s->listener, 1), 0);
    assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void stop(struct script *s)
{
    pthread_join(s->thread, NULL);
    close(s->listener);
    unlink(s->path);
}

/*
 * Opens, runs one command; both must fail or not as told, and the text of the failure must hold
 * `text`.
 */
static void expect(struct script *s, int opened, int executed, const char *text)
{
    struct error err = {""};
    struct qmp *qmp = NULL;

    start(s);
    assert_int_equal(qmp_open(&qmp, s->path, 100, &err), opened);
    if (opened == 0) {
        assert_string_equal(qmp_version(qmp), "7.2.22");
        assert_int_equal(qmp_peer(qmp), getpid());
        assert_int_equal(qmp_execute(qmp, "stop", NULL, NULL, &err), executed);
    }
    if (text && !strstr(err.text, text))
        fail_msg("\"%s\" is not in \"%s\"", text, err.text);
    qmp_close(qmp);
    stop(s);
}

static void r10_nobody_listens(void **state)
{
    struct error err = {""};
    struct qmp *qmp;

    (void)state;
    assert_int_equal(qmp_open(&qmp, "/tmp/no-such-socket", 100, &err), 1);
}

static void r10_reply(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {GREETING, READY, "{\"return\":{},\"id\":2}\n"}}, 0, 0, NULL);
}

static void r10_reply_in_pieces_behind_events(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {GREETING, READY,
                             "{\"event\":\"STOP\",\"timestamp\":{\"seconds\":1}}\n"
                             "{\"return\":{\"late\":1},\"id\":77}\n{\"return\":{},\"id\":2}\n"}},
           0, 0, NULL);
}

static void r10_error_reply(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {GREETING, READY,
                             "{\"error\":{\"class\":\"X\",\"desc\":\"no way\"},\"id\":2}\n"}},
           0, -1, "stop: QEMU refuses: no way");
}

static void r10_garbage_as_greeting(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {"SSH-2.0-OpenSSH\r\n"}}, -1, 0,
           "no JSON object but \"SSH-2.0-OpenSSH");
}

static void r10_other_json_as_greeting(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {"{\"hello\":[1,2,3]}\n"}}, -1, 0, "does not greet");
}

static void r10_garbage_as_reply(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {GREETING, READY, "{\"return\":{},\"id\":2\n"}}, 0, -1,
           "no JSON object");
    expect(&(struct script){.steps = {GREETING, READY, "[]\n"}}, 0, -1, "no JSON object");
    expect(&(struct script){.steps = {GREETING, READY, "\n"}}, 0, -1, "no JSON object");
}

static void r10_long_line(void **state)
{
    char *line = malloc(200000);

    (void)state;
    memset(line, 'x', 200000);
    line[199999] = '\0';
    expect(&(struct script){.steps = {GREETING, READY, line}}, 0, -1, "more than 65536 octets");
    free(line);
}

/* The longest line that is let through, and another reply behind it. */
static void r10_longest_line(void **state)
{
    char *line = calloc(1, QMP_LINE_MAX + 100);

    (void)state;
    memset(line, ' ', QMP_LINE_MAX);
    memcpy(line, "{\"event\":\"X\"", 12);
    strcpy(line + QMP_LINE_MAX - 1, "}\n{\"return\":{},\"id\":2}\n");
    expect(&(struct script){.steps = {GREETING, READY, line}}, 0, 0, NULL);
    free(line);
}

static void r10_closed(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {""}}, -1, 0, "closed the connection");
    expect(&(struct script){.steps = {GREETING, READY, "{\"return\":{"}}, 0, -1,
           "closed the connection");
}

static void r10_silence(void **state)
{
    (void)state;
    expect(&(struct script){.steps = {""}, .silent = true}, -1, 0, "no answer from QEMU");
    expect(&(struct script){.steps = {GREETING, READY, ""}, .silent = true}, 0, -1,
           "no answer from QEMU");
}

/* A reply that comes after its time-out is not taken for the reply to the next command. */
static void r10_late_reply(void **state)
{
    struct script s = {.steps = {GREETING, READY, "", "{\"error\":{\"desc\":\"late\"},\"id\":2}\n"
                                             "{\"return\":3,\"id\":3}\n"},
                       .silent = true};
    struct error err;
    struct qmp *qmp;
    json_t *value;

    (void)state;
    start(&s);
    assert_int_equal(qmp_open(&qmp, s.path, 100, &err), 0);
    assert_int_equal(qmp_execute(qmp, "stop", NULL, NULL, &err), -1);
    assert_int_equal(qmp_execute(qmp, "cont", NULL, &value, &err), 0);
    assert_int_equal(json_integer_value(value), 3);
    json_decref(value);
    qmp_close(qmp);
    stop(&s);
}

static void after(const char *events, bool shut_down, bool failed, enum qmp_migration migration)
{
    struct script s = {.steps = {GREETING, READY, events}};
    struct error err;
    struct qmp *qmp;
    uint64_t id;

    start(&s);
    assert_int_equal(qmp_open(&qmp, s.path, 1000, &err), 0);
    assert_int_equal(qmp_poll(qmp), 0);
    assert_int_equal(qmp_send(qmp, "x", "{\"a\":1}", -1, &id, &err), 0);
    while (qmp_poll(qmp) == 0)
        usleep(1000);
    assert_int_equal(qmp_events(qmp)->shut_down, shut_down);
    assert_int_equal(qmp_events(qmp)->failed, failed);
    assert_int_equal(qmp_events(qmp)->migration, migration);
    assert_int_equal(qmp_execute(qmp, "y", NULL, NULL, &err), -1);
    qmp_close(qmp);
    stop(&s);
}

static void r7_events(void **state)
{
    (void)state;
    after("{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-shutdown\"}}\n",
          true, false, QMP_MIGRATION_NONE);
    after("{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":false,\"reason\":\"host-signal\"}}\n", true,
          false, QMP_MIGRATION_NONE);
    after("{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-panic\"}}\n", false,
          true, QMP_MIGRATION_NONE);
    after("{\"event\":\"GUEST_PANICKED\",\"data\":{\"action\":\"pause\"}}\n", false, true,
          QMP_MIGRATION_NONE);
    after("{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n", false, false,
          QMP_MIGRATION_NONE);
    after("{\"event\":\"MIGRATION\",\"data\":{\"status\":\"active\"}}\n"
          "{\"event\":\"MIGRATION\",\"data\":{\"status\":\"completed\"}}\n", false, false,
          QMP_MIGRATION_DONE);
    after("{\"event\":\"MIGRATION\",\"data\":{\"status\":\"failed\"}}\n", false, false,
          QMP_MIGRATION_FAILED);
    after("{\"event\":\"SHUTDOWN\",\"data\":17}\n{\"event\":\"MIGRATION\"}\n", true, false,
          QMP_MIGRATION_NONE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(r10_nobody_listens),
        cmocka_unit_test(r10_reply),
        cmocka_unit_test(r10_reply_in_pieces_behind_events),
        cmocka_unit_test(r10_error_reply),
        cmocka_unit_test(r10_garbage_as_greeting),
        cmocka_unit_test(r10_other_json_as_greeting),
        cmocka_unit_test(r10_garbage_as_reply),
        cmocka_unit_test(r10_long_line),
        cmocka_unit_test(r10_longest_line),
        cmocka_unit_test(r10_closed),
        cmocka_unit_test(r10_silence),
        cmocka_unit_test(r10_late_reply),
        cmocka_unit_test(r7_events),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
