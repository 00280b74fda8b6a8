/* SPDX-License-Identifier: GPL-2.0-or-later */
/* vm/learn.c and vm/xen/facts.c: what a section leaves out comes from the domain, and is checked (R10). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "vm/learn.h"
#include "vm/xen/facts.h"

#define MAC "00:16:3e:00:00:51"

static struct vm_config silent(void)
{
    return (struct vm_config){.name = "a", .platform = "xen", .tap = "", .mac = "", .guest_bridge = "", .vif = ""};
}

static struct vm_facts domain(void)
{
    return (struct vm_facts){.id = 7, .memory_bytes = 64 << 20, .mac = MAC, .bridge = "xenbr0", .vif = "vif7.0"};
}

static void a_silent_section_learns_everything(void **state)
{
    struct vm_config section = silent();
    struct vm_facts facts = domain();
    struct vm_learned l;
    struct error err;

    (void)state;
    vm_learned_init(&l, &section);
    assert_string_equal(l.cfg.mac, "");
    assert_int_equal(vm_learn(&l, &section, &facts, &err), 0);
    assert_int_equal(l.cfg.memory_bytes, 64 << 20);
    assert_string_equal(l.cfg.mac, MAC);
    assert_string_equal(l.cfg.guest_bridge, "xenbr0");
    assert_string_equal(l.cfg.vif, "vif7.0");
    assert_int_equal(l.cfg.nfqueue, 14); /* two of its own */

    /* the next domain of that name */
    facts = (struct vm_facts){.id = 8, .memory_bytes = 32 << 20};
    assert_int_equal(vm_learn(&l, &section, &facts, &err), 0);
    assert_string_equal(l.cfg.vif, "");
    assert_int_equal(l.cfg.memory_bytes, 32 << 20);
}

static void what_is_set_counts(void **state)
{
    struct vm_config section = silent();
    struct vm_facts facts = domain();
    struct vm_learned l;
    struct error err;

    (void)state;
    section.tap = "db1";
    section.mac = "00:16:3E:00:00:51";
    section.memory_bytes = 128 << 20;
    vm_learned_init(&l, &section);
    assert_int_equal(vm_learn(&l, &section, &facts, &err), 0);
    assert_int_equal(l.cfg.memory_bytes, 128 << 20);
    assert_string_equal(l.cfg.tap, "db1");
    assert_string_equal(l.cfg.vif, ""); /* frames go through the tap */
    section.tap = "";
    section.nfqueue = 100;
    vm_learned_init(&l, &section);
    assert_int_equal(vm_learn(&l, &section, &facts, &err), 0);
    assert_int_equal(l.cfg.nfqueue, 100);
}

/* Both values and the way out; and nothing has changed. */
static void r10_differences_are_refused(void **state)
{
    static const struct {
        char *tap, *mac, *bridge, *vif, *said, *there, *way;
    } cases[] = {
        {"", "00:16:3e:00:00:52", "", "", "00:16:3e:00:00:52", MAC, "leave mac out"},
        {"", "", "br9", "", "br9", "xenbr0", "leave guest-bridge out"},
        {"db1", "", "br9", "", "br9", "xenbr0", "make them equal"},
        {"", "", "", "db1", "db1", "vif7.0", "vifname=db1"},
    };
    struct vm_facts facts = domain(), none = {.memory_bytes = 64 << 20};
    struct vm_config section;
    struct vm_learned l;
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        section = silent();
        section.tap = cases[i].tap;
        section.mac = cases[i].mac;
        section.guest_bridge = cases[i].bridge;
        section.vif = cases[i].vif;
        vm_learned_init(&l, &section);
        assert_int_equal(vm_learn(&l, &section, &facts, &err), -1);
        assert_non_null(strstr(err.text, cases[i].said));
        assert_non_null(strstr(err.text, cases[i].there));
        assert_non_null(strstr(err.text, cases[i].way));
        assert_memory_equal(&l.cfg, &section, sizeof(section));
        assert_int_equal(vm_learn(&l, &section, &none, &err), -1);
        assert_non_null(strstr(err.text, "no vif"));
    }
    section = silent();
    section.tap = "db1";
    facts.bridge[0] = '\0';
    assert_int_equal(vm_learn(&l, &section, &facts, &err), -1);
    assert_non_null(strstr(err.text, "no bridge"));
}

static int facts_of(struct vm_facts *f, const char *json, unsigned id, struct error *err)
{
    return xen_facts(f, json, strlen(json), 16385, id, err);
}

static void facts_of_a_domain(void **state)
{
    struct vm_facts f;
    struct error err;

    (void)state;
    assert_int_equal(facts_of(&f, "{\"c_info\": {\"type\": \"pvh\"}}", 5, &err), 0);
    assert_string_equal(f.mac, "");
    assert_string_equal(f.vif, "");
    assert_int_equal(f.memory_bytes, 65 << 20);
    assert_int_equal(facts_of(&f, "{\"nics\": [{\"devid\": 1, \"mac\": \"" MAC "\", \"bridge\": \"br-none\"}]}", 0, &err), 0);
    assert_string_equal(f.bridge, "br-none");
    assert_string_equal(f.vif, "");
    xen_facts_of(&f, 31000);
    assert_string_equal(f.vif, "vif31000.1");
    assert_int_equal(f.id, 31000);
    assert_int_equal(facts_of(&f, "{\"nics\": [{\"mac\": \"" MAC "\", \"ifname\": \"db1\"}]}", 3, &err), 0);
    assert_string_equal(f.vif, "db1");
}

static void r10_strange_configurations_refused(void **state)
{
    static const char *const bad[] = {
        "", "{", "[]", "{\"nics\": [{}]}", "{\"nics\": [7]}",
        "{\"nics\": [{\"mac\": \"" MAC "\"}, {\"mac\": \"" MAC "\"}]}",
        "{\"nics\": [{\"mac\": \"01:16:3e:00:00:51\"}]}",
        "{\"nics\": [{\"mac\": \"" MAC "\", \"ifname\": \"../etc\"}]}",
        "{\"nics\": [{\"mac\": \"" MAC "\", \"ifname\": \"a b\"}]}",
        "{\"nics\": [{\"mac\": \"" MAC "\", \"bridge\": \"a234567890123456\"}]}",
        "{\"nics\": [{\"mac\": \"" MAC "\", \"devid\": -1}]}",
        "{\"nics\": [{\"mac\": \"" MAC "\", \"devid\": 4294967296}]}",
    };
    struct vm_facts f;
    struct error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
        if (facts_of(&f, bad[i], 3, &err) == 0)
            fail_msg("taken: %s", bad[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_silent_section_learns_everything),
        cmocka_unit_test(what_is_set_counts),
        cmocka_unit_test(r10_differences_are_refused),
        cmocka_unit_test(facts_of_a_domain),
        cmocka_unit_test(r10_strange_configurations_refused),
    };

    return cmocka_run_group_tests_name("learn", tests, NULL, NULL);
}
