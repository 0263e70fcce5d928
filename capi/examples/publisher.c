/* Publishes into a bus from C, and reacts to it. */
#include "metricbus.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <threads.h>

static void check(int32_t status) {
    if (status != MB_OK) {
        fprintf(stderr, "%s\n", mb_last_error());
        exit(1);
    }
}

struct seen {
    mtx_t mutex;
    cnd_t bell;
    int crossings;
};

/* Runs on a thread of the dispatcher. */
static int32_t crossed(const struct mb_crossing *crossing, void *user_data) {
    struct seen *seen = user_data;
    printf("%.*s %s at %g\n", (int)crossing->series.len, crossing->series.ptr,
           crossing->state == MB_RAISED ? "raised" : "cleared", crossing->value);
    mtx_lock(&seen->mutex);
    seen->crossings += 1;
    cnd_signal(&seen->bell);
    mtx_unlock(&seen->mutex);
    return 0;
}

int main(void) {
    struct mb_bus *bus;
    check(mb_bus_new(&bus));

    struct mb_label worker = mb_l("worker", "7");
    struct mb_desc desc = mb_desc_of("kv_usage_ratio", "Share of KV blocks in use.");
    desc.labels = &worker;
    desc.labels_len = 1;
    struct mb_gauge *usage;
    check(mb_gauge_new(bus, &desc, &usage));

    struct mb_str method = mb_s("method");
    desc = mb_desc_of("requests_total", "Requests served.");
    desc.label_names = &method;
    desc.label_names_len = 1;
    struct mb_counter_family *requests;
    check(mb_counter_family_new(bus, &desc, &requests));
    struct mb_str value = mb_s("generate");
    struct mb_counter *generate;
    check(mb_counter_family_with(requests, &value, 1, &generate));

    struct mb_window *window;
    check(mb_window_open(bus, mb_s("requests_total"), UINT64_C(10000000000), &window));

    struct seen seen = {.crossings = 0};
    mtx_init(&seen.mutex, mtx_plain);
    cnd_init(&seen.bell);
    struct mb_threshold threshold = mb_above(0.9, 0.8);
    struct mb_subscription *subscription;
    check(mb_on_threshold(bus, mb_s("kv_usage_ratio"), &threshold, crossed, &seen, NULL, &subscription));

    for (int i = 0; i < 100; ++i) {
        check(mb_counter_inc(generate));
    }
    check(mb_gauge_set(usage, 0.95));
    check(mb_gauge_set(usage, 0.5));

    mtx_lock(&seen.mutex);
    while (seen.crossings < 2) {
        cnd_wait(&seen.bell, &seen.mutex);
    }
    mtx_unlock(&seen.mutex);

    struct mb_window_stats stats = {.size = sizeof stats};
    check(mb_window_read(window, &stats, NULL, 0, NULL));
    printf("increase in 10 s: %g\n", stats.increase);

    char *text;
    check(mb_bus_text(bus, &text, NULL));
    printf("%s", text);
    mb_text_free(text);

    struct mb_gauge *wrong;
    desc = mb_desc_of("requests_total", "Something else.");
    if (mb_gauge_new(bus, &desc, &wrong) != MB_OK) {
        printf("refused: %s\n", mb_last_error());
    }

    /* After this the callback runs no more, and what it uses may go. */
    check(mb_subscription_join(subscription, UINT64_MAX));
    cnd_destroy(&seen.bell);
    mtx_destroy(&seen.mutex);
    mb_window_free(window);
    mb_counter_free(generate);
    mb_counter_family_free(requests);
    mb_gauge_free(usage);
    mb_bus_free(bus);
    return 0;
}
