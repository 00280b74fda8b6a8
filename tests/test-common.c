/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The small parts of common/: bitmap, buffer, samples, faults, the arbiter (R7). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "common/arbiter.h"
#include "common/bitmap.h"
#include "common/buffer.h"
#include "common/clock.h"
#include "common/fault.h"
#include "common/run-file.h"
#include "common/samples.h"

/* --- bitmap --- */

static void bitmap_walk(void **state)
{
    static const uint64_t sizes[] = {1, 63, 64, 65, 1000};

    (void)state;
    for (size_t s = 0; s < sizeof(sizes) / sizeof(*sizes); s++)
        for (uint64_t from = 0; from <= sizes[s]; from += 1 + sizes[s] / 70)
            for (uint64_t to = from; to <= sizes[s]; to += 1 + sizes[s] / 70) {
                uint64_t bits = sizes[s], seen = 0;
                struct bitmap b;

                assert_int_equal(bitmap_init(&b, bits), 0);
                bitmap_set_range(&b, from, to - from);
                assert_int_equal(bitmap_count(&b), to - from);
                for (uint64_t i = bitmap_next(&b, 0); i < bits; i = bitmap_next(&b, i + 1)) {
                    assert_int_equal(i, from + seen);
                    assert_true(bitmap_test(&b, i));
                    seen++;
                }
                assert_int_equal(seen, to - from);
                bitmap_clear_all(&b);
                assert_int_equal(bitmap_next(&b, 0), bits);
                bitmap_free(&b);
            }
}

static void bitmap_single_bits(void **state)
{
    struct bitmap b;

    (void)state;
    assert_int_equal(bitmap_init(&b, 200), 0);
    for (uint64_t i = 0; i < 200; i++) {
        bitmap_set(&b, i);
        assert_int_equal(bitmap_count(&b), 1);
        assert_int_equal(bitmap_next(&b, 0), i);
        assert_int_equal(bitmap_next(&b, i), i);
        assert_int_equal(bitmap_next(&b, i + 1), 200);
        assert_int_equal(bitmap_next(&b, UINT64_MAX), 200);
        bitmap_clear(&b, i);
        assert_false(bitmap_test(&b, i));
    }
    bitmap_free(&b);
    bitmap_free(&b);
}

/* --- buffer --- */

static void buffer_keeps_its_memory(void **state)
{
    struct buffer b = {0};
    const uint8_t *data;

    (void)state;
    assert_int_equal(buffer_append(&b, NULL, 0), 0);
    for (unsigned i = 0; i < 3000; i++)
        assert_int_equal(buffer_append(&b, &(uint8_t){(uint8_t)i}, 1), 0);
    assert_int_equal(b.len, 3000);
    for (unsigned i = 0; i < 3000; i++)
        assert_int_equal(b.data[i], (uint8_t)i);
    data = b.data;
    buffer_clear(&b);
    assert_int_equal(buffer_reserve(&b, 3000), 0);
    assert_ptr_equal(b.data, data); /* recycled, not allocated again */
    buffer_free(&b);
    buffer_free(&b);
}

static void r9_buffer_refuses_the_impossible(void **state)
{
    struct buffer b = {0};

    (void)state;
    assert_int_equal(buffer_append(&b, "abc", 3), 0);
    assert_int_equal(buffer_reserve(&b, SIZE_MAX), -1);
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(buffer_reserve(&b, SIZE_MAX - 2), -1);
    assert_int_equal(b.len, 3);
    assert_memory_equal(b.data, "abc", 3);
    buffer_free(&b);
}

/* --- samples --- */

static void quantiles(void **state)
{
    static struct samples s;
    struct quantiles q = samples_quantiles(&s);

    (void)state;
    assert_true(q.p50 == 0 && q.p99 == 0 && q.max == 0);
    samples_add(&s, 7);
    q = samples_quantiles(&s);
    assert_true(q.p50 == 7 && q.p99 == 7 && q.max == 7);
    s.count = 0;
    for (uint64_t i = 0; i < 1000; i++)
        samples_add(&s, i * 7 % 1000); /* 0 to 999 in another order */
    q = samples_quantiles(&s);
    assert_true(q.p50 == 500 && q.p99 == 990 && q.max == 999);
    for (uint64_t i = 0; i < SAMPLES_MAX; i++)
        samples_add(&s, 5); /* only the last count */
    q = samples_quantiles(&s);
    assert_true(q.p50 == 5 && q.p99 == 5 && q.max == 5);
    assert_int_equal(s.count, 1000 + SAMPLES_MAX);
}

/* --- faults --- */

static void fault_from_the_environment(void **state)
{
    (void)state;
    assert_false(fault_hit("env-one", 2));
    assert_true(fault_hit("env-one", 3)); /* REMUS_FAULT as main() set it */
    assert_false(fault_hit("env-one", 3));
    assert_true(fault_hit("env-two", 99));
    assert_false(fault_hit("env-two", 99));
}

static void fault_fires_once(void **state)
{
    (void)state;
    assert_false(fault_hit("lost", 1));
    assert_int_equal(fault_set("lost@5,lost@6,early", NULL), 0);
    assert_false(fault_hit("lost", 4));
    assert_true(fault_hit("lost", 5));
    assert_false(fault_hit("lost", 5));
    assert_true(fault_hit("lost", 6));
    assert_false(fault_hit("los", 6));
    assert_true(fault_hit("early", 0));
    assert_false(fault_hit("early", 0));
}

static void fault_bad_lists_refused(void **state)
{
    static const char *const bad[] = {",",  "@5",  "a@",   "a@x", "a@5x", "a@-1", "a@ 5", "a@5@6",
                                      "a-name-that-is-much-longer-than-any-fault-has-got@1"};
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        err.text[0] = '\0';
        assert_int_equal(fault_set(bad[i], &err), -1);
        assert_non_null(strstr(err.text, "fault '"));
    }
    assert_false(fault_hit("a", 5));
    for (int i = 0; i < FAULT_MAX; i++)
        assert_int_equal(fault_set("full@1", &err), 0);
    assert_int_equal(fault_set("full@1", &err), -1); /* R9 */
    for (int i = 0; i < FAULT_MAX; i++)
        assert_true(fault_hit("full", 1));
}

static void fault_crash_kills(void **state)
{
    pid_t child = fork();
    int status;

    (void)state;
    if (child == 0) {
        fault_set("crash@2", NULL);
        fault_crash("crash", 1);
        fault_crash("crash", 2);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

/* --- the arbiter --- */

static enum arbiter_answer ask(const char *command, uint64_t timeout_ns, struct error *err)
{
    struct arbiter a = {0};
    enum arbiter_answer answer;

    assert_int_equal(arbiter_ask(&a, command, "db1", "backup", 17, timeout_ns, err), 0);
    while ((answer = arbiter_poll(&a, clock_ns(), err)) == ARBITER_PENDING)
        clock_sleep_until(clock_ns() + NS_PER_MS);
    assert_int_equal(a.pid, 0);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* nobody is left behind */
    return answer;
}

static void r7_only_exit_status_0_grants(void **state)
{
    struct error err;

    (void)state;
    assert_int_equal(ask("true", 60 * NS_PER_S, &err), ARBITER_GRANTED);
    assert_int_equal(ask("exit 3; true", 60 * NS_PER_S, &err), ARBITER_DENIED);
    assert_non_null(strstr(err.text, "exit status 3"));
    assert_int_equal(ask("/no/such/command", 60 * NS_PER_S, &err), ARBITER_DENIED);
    assert_non_null(strstr(err.text, "cannot be run"));
    assert_int_equal(ask("kill -9 $$; true", 60 * NS_PER_S, &err), ARBITER_DENIED);
    assert_non_null(strstr(err.text, "signal 9"));
}

static void r7_silence_denies_and_the_command_is_killed(void **state)
{
    struct error err;
    char command[160], path[] = "/tmp/remus-arbiter-XXXXXX", pid[16] = "";
    int fd = mkstemp(path), tries = 5000;

    (void)state;
    assert_true(fd >= 0);
    /* the shell's child, too: a grant that comes late must do nothing any more */
    snprintf(command, sizeof(command), "(echo $$ >%s; sleep 600); true", path);
    assert_int_equal(ask(command, 300 * NS_PER_MS, &err), ARBITER_DENIED);
    assert_non_null(strstr(err.text, "no answer in time"));
    if (pread(fd, pid, sizeof(pid) - 1, 0) > 0) /* on a slow machine it was killed even before */
        while (kill((pid_t)-atoi(pid), 0) == 0 && tries--)
            clock_sleep_until(clock_ns() + NS_PER_MS); /* init reaps it */
    assert_true(tries > 0);
    close(fd);
    unlink(path);
}

static void arbiter_is_told_what_it_decides(void **state)
{
    struct error err;

    (void)state;
    assert_int_equal(ask("sh -c 'test \"$*\" = \"db1 backup 17\"' x", 60 * NS_PER_S, &err),
                     ARBITER_GRANTED);
}

static void arbiter_cancelled(void **state)
{
    struct arbiter a = {0};
    struct error err;

    (void)state;
    arbiter_cancel(&a);
    assert_int_equal(arbiter_ask(&a, "sleep 600; true", "v", "primary", 1, 600 * NS_PER_S, &err), 0);
    assert_int_equal(arbiter_poll(&a, clock_ns(), &err), ARBITER_PENDING);
    arbiter_cancel(&a);
    assert_int_equal(a.pid, 0);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static void arbiter_command_too_long(void **state)
{
    char command[5000];
    struct arbiter a = {0};
    struct error err;

    (void)state;
    memset(command, 'x', sizeof(command) - 1);
    command[sizeof(command) - 1] = '\0';
    assert_int_equal(arbiter_ask(&a, command, "v", "primary", 1, NS_PER_S, &err), -1);
    assert_int_equal(a.pid, 0);
}

static void run_files(void **state)
{
    char dir[] = "/tmp/remus-run-XXXXXX", path[PATH_MAX], text[16] = "";
    struct vm_config cfg = {.name = "vm", .run_dir = dir};
    struct error err;
    FILE *f;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(run_path(&cfg, ".a", path, strlen(dir) + 5), -1);
    assert_string_equal(path, "");
    assert_int_equal(run_path(&cfg, ".a", path, strlen(dir) + 6), 0);
    assert_int_equal(run_file_write(&cfg, ".a", "long old text", 13, &err), 0);
    assert_int_equal(run_file_write(&cfg, ".a", "new", 3, &err), 0);
    f = fopen(path, "r");
    assert_non_null(f);
    assert_int_equal(fread(text, 1, sizeof(text), f), 3);
    fclose(f);
    assert_string_equal(text, "new");
    run_file_remove(&cfg, ".a");
    assert_int_equal(rmdir(dir), 0); /* and no temporary file is left */
    assert_int_equal(run_file_write(&cfg, ".a", "new", 3, &err), -1);
    assert_non_null(strstr(err.text, path));
}

static void last_line_of_a_log(void **state)
{
    struct error err;
    FILE *f = tmpfile();

    (void)state;
    assert_non_null(f);
    error_set(&err, "it failed");
    assert_int_equal(run_log_quote(-1, &err), -1);
    assert_int_equal(run_log_quote(fileno(f), &err), -1);
    assert_string_equal(err.text, "it failed");
    for (int i = 0; i < 1000; i++)
        fputs("nothing to see\n", f);
    fputs("no memory\n\n", f);
    fflush(f);
    assert_int_equal(run_log_quote(fileno(f), &err), -1);
    assert_string_equal(err.text, "it failed: no memory");
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fault_from_the_environment),
        cmocka_unit_test(bitmap_walk),
        cmocka_unit_test(bitmap_single_bits),
        cmocka_unit_test(buffer_keeps_its_memory),
        cmocka_unit_test(r9_buffer_refuses_the_impossible),
        cmocka_unit_test(quantiles),
        cmocka_unit_test(fault_fires_once),
        cmocka_unit_test(fault_bad_lists_refused),
        cmocka_unit_test(fault_crash_kills),
        cmocka_unit_test(r7_only_exit_status_0_grants),
        cmocka_unit_test(r7_silence_denies_and_the_command_is_killed),
        cmocka_unit_test(arbiter_is_told_what_it_decides),
        cmocka_unit_test(arbiter_cancelled),
        cmocka_unit_test(arbiter_command_too_long),
        cmocka_unit_test(run_files),
        cmocka_unit_test(last_line_of_a_log),
    };

    setenv("REMUS_FAULT", "env-one@3,env-two", 1);
    return cmocka_run_group_tests_name("common", tests, NULL, NULL);
}
