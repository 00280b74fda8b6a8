/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What both daemons share: each test runs daemon_main() in a child of its own. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/daemon.h"

#define POSTS 1000

static char dir[] = "/tmp/test-daemon-XXXXXX";
static char config_path[64], output_path[64], run_dir[64];

/* -- a daemon that writes what happens to it to stdout ----------------------------------------- */

static unsigned posted;
static pthread_t poster;
static bool posting;
static int stop_calls;

static void say(const char *what)
{
    printf("%s\n", what);
    fflush(stdout);
}

static void on_post(void *arg)
{
    if (posted == (uintptr_t)arg)
        posted++; /* in order */
}

static void on_last_post(void *arg)
{
    (void)arg;
    say(posted == POSTS ? "posts in order" : "posts out of order");
}

static void *post(void *d)
{
    for (uintptr_t i = 0; i < POSTS; i++)
        daemon_post(d, on_post, (void *)i);
    daemon_post(d, on_last_post, NULL);
    return NULL;
}

static int start(struct daemon *d, struct error *err)
{
    if (config_vm(d->config, "broken"))
        return error_set(err, "cannot start");
    if (config_vm(d->config, "guest")) { /* lives on when the daemon is killed */
        int ends[2];
        char c;

        if (pipe(ends) == 0 && fork() == 0) {
            closefrom(3);
            sleep(20);
            _exit(0);
        }
        close(ends[1]);
        while (read(ends[0], &c, 1) > 0) /* until the guest has let go of what it inherited */
            ;
        close(ends[0]);
    }
    say("started");
    posting = pthread_create(&poster, NULL, post, d) == 0;
    return posting ? 0 : -1;
}

static void stop(struct daemon *d)
{
    stop_calls++;
    say(stop_calls == 1 ? "stopping" : "stopping twice");
    if (!config_vm(d->config, "slow"))
        daemon_exit(d, 0);
}

static void free_all(struct daemon *d)
{
    if (posting) /* the loop is freed next */
        pthread_join(poster, NULL);
    say(d->control ? "freed with the socket open" : "freed");
}

/* -- the child --------------------------------------------------------------------------------- */

static void configure(const char *vm)
{
    FILE *f = fopen(config_path, "w");

    fprintf(f, "run-dir = \"%s\"\n", run_dir);
    if (vm)
        fprintf(f, "vm %s { platform = fake }\n", vm);
    assert_int_equal(fclose(f), 0);
}

/* stdout and stderr go to output_path. */
static pid_t run(const char *option)
{
    static const struct daemon_ops ops = {
        .name = "testd", .summary = "tests", .start = start, .stop = stop, .free = free_all};
    char *argv[] = {(char *)"testd", (char *)"-c", config_path, (char *)option, NULL};
    pid_t pid;

    unlink(output_path);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int fd = open(output_path, O_CREAT | O_WRONLY | O_APPEND, 0600), status;

        dup2(fd, 1);
        dup2(fd, 2);
        status = daemon_main(&ops, option ? 4 : 3, argv);
        fflush(NULL);
        _exit(status); /* not through the tests' own end */
    }
    return pid;
}

static const char *output(void)
{
    static char text[8192];
    int fd = open(output_path, O_RDONLY);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof(text) - 1);

    text[n > 0 ? n : 0] = '\0';
    if (fd >= 0)
        close(fd);
    return text;
}

static void wait_for(const char *what)
{
    for (int i = 0; i < 2000 && !strstr(output(), what); i++)
        usleep(10000);
    if (!strstr(output(), what))
        fail_msg("no \"%s\" in %s", what, output());
}

static void expect_exit(pid_t pid, int status, const char *says)
{
    int got;

    assert_int_equal(waitpid(pid, &got, 0), pid);
    assert_true(WIFEXITED(got));
    if (WEXITSTATUS(got) != status || !strstr(output(), says))
        fail_msg("exit status %d, want %d and \"%s\": %s", WEXITSTATUS(got), status, says,
                 output());
}

/* -- tests ------------------------------------------------------------------------------------- */

static void test_options(void **state)
{
    (void)state;
    configure("db1");
    expect_exit(run("-t"), 0, ": ok\n");
    expect_exit(run("-h"), 0, "Usage: testd");
    expect_exit(run("-V"), 0, "testd ");
    expect_exit(run("-x"), 2, "Try testd --help");
    expect_exit(run("extra"), 2, "unexpected argument \"extra\"");
    expect_exit(run("-D@"), 2, "-D @: ");
    assert_int_equal(access(run_dir, F_OK), -1); /* nothing was begun */
    configure("\"a b\"");
    expect_exit(run("-t"), 1, ":2: vm \"a b\"");
    expect_exit(run("-f"), 1, ":2: vm \"a b\"");
}

static void test_runs_and_stops_once(void **state)
{
    char path[128];
    pid_t pid;

    (void)state;
    configure(NULL);
    pid = run("-f");
    wait_for("posts in order");
    snprintf(path, sizeof(path), "%s/testd.sock", run_dir);
    assert_int_equal(access(path, F_OK), 0);
    kill(pid, SIGHUP);
    wait_for("SIGHUP");
    kill(pid, SIGPIPE);
    kill(pid, SIGTERM);
    expect_exit(pid, 0, "stopping\nfreed\n");
    assert_int_equal(access(path, F_OK), -1);
}

static void test_second_signal_forces(void **state)
{
    pid_t pid;

    (void)state;
    configure("slow");
    pid = run("-f");
    wait_for("started");
    kill(pid, SIGINT);
    wait_for("stopping");
    kill(pid, SIGTERM);
    expect_exit(pid, 1, "leaving at once");
    assert_null(strstr(output(), "stopping twice"));
}

static void test_start_that_fails(void **state)
{
    (void)state;
    configure("broken");
    expect_exit(run("-f"), 1, "cannot start");
    assert_non_null(strstr(output(), "freed\n"));
}

/* R7 begins here: two daemons with one run-dir would be two masters of one guest. */
static void test_r7_one_daemon_a_run_dir(void **state)
{
    char first_output[80], process[32];
    pid_t first, child;

    (void)state;
    configure("guest");
    first = run("-f");
    wait_for("started");
    snprintf(first_output, sizeof(first_output), "%s.1", output_path);
    assert_int_equal(rename(output_path, first_output), 0);
    snprintf(process, sizeof(process), "process %d", (int)first);
    expect_exit(run("-f"), 1, process);
    kill(first, SIGKILL);
    assert_int_equal(waitpid(first, NULL, 0), first);
    unlink(first_output);

    /* What it left does not stop the next one, and neither does its guest, which lives on. */
    configure(NULL);
    child = run("-f");
    wait_for("started");
    kill(child, SIGTERM);
    expect_exit(child, 0, "freed");
}

static void test_r10_run_dir_of_others(void **state)
{
    FILE *f;

    (void)state;
    configure(NULL);
    assert_int_equal(mkdir(run_dir, 0700), 0);
    assert_int_equal(chmod(run_dir, 0777), 0);
    expect_exit(run("-f"), 1, "others can write to it");
    if (geteuid() == 0) {
        assert_int_equal(chmod(run_dir, 0700), 0);
        assert_int_equal(chown(run_dir, 65534, 65534), 0);
        expect_exit(run("-f"), 1, "belongs to user 65534");
    }
    assert_int_equal(rmdir(run_dir), 0);
    f = fopen(run_dir, "w");
    assert_int_equal(fclose(f), 0);
    expect_exit(run("-f"), 1, "is no directory");
    assert_int_equal(unlink(run_dir), 0);
    strcat(run_dir, "/a/b");
    configure(NULL);
    expect_exit(run("-f"), 1, "cannot create it: No such file or directory; make the directory that it is to be in");
}

static void expect_notice(int fd, const char *want)
{
    char text[512];

    do {
        ssize_t n = recv(fd, text, sizeof(text) - 1, 0);

        assert_true(n >= 0);
        text[n] = '\0';
    } while (!strstr(text, want));
}

static void test_words_with_systemd(void **state)
{
#ifdef HAVE_SYSTEMD
    const struct timeval patience = {20, 0};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    pid_t pid;

    (void)state;
    configure(NULL);
    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/notify", dir);
    assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setenv("NOTIFY_SOCKET", addr.sun_path, 1);
    setenv("WATCHDOG_USEC", "100000", 1);
    pid = run("-f");
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    expect_notice(fd, "READY=1");
    expect_notice(fd, "WATCHDOG=1");
    expect_notice(fd, "WATCHDOG=1");
    kill(pid, SIGTERM);
    expect_notice(fd, "STOPPING=1");
    expect_exit(pid, 0, "freed");
    close(fd);
    unlink(addr.sun_path);
#else
    (void)state;
    (void)expect_notice;
    skip();
#endif
}

static int make_names(void **state)
{
    (void)state;
    snprintf(run_dir, sizeof(run_dir), "%s/run", dir);
    snprintf(config_path, sizeof(config_path), "%s/conf", dir);
    snprintf(output_path, sizeof(output_path), "%s/output", dir);
    return 0;
}

static int remove_all(void **state)
{
    char command[128];

    (void)state;
    snprintf(command, sizeof(command), "rm -rf %s/run %s/conf %s/output", dir, dir, dir);
    return system(command);
}

static int make_dir(void **state)
{
    (void)state;
    unsetenv("JOURNAL_STREAM");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, make_names, remove_all)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_options),
        TEST(test_runs_and_stops_once),
        TEST(test_second_signal_forces),
        TEST(test_start_that_fails),
        TEST(test_r7_one_daemon_a_run_dir),
        TEST(test_r10_run_dir_of_others),
        TEST(test_words_with_systemd),
    };

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
